"""End the processes of a local Ray with the command that started it, even if the command is killed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

_MARK = "MPA_RAY_STARTED_BY"
_NUM_POLLS, _NUM_POLLS_BEFORE_KILL = 15, 4
_SCRIPT = f"""
cat > /dev/null
for poll in $(seq {_NUM_POLLS}); do
  left=$(grep -lsa "{_MARK}=$1" /proc/[0-9]*/environ | cut -d / -f 3)
  if [ -z "$left" ]; then exit; fi
  if [ "$poll" -gt {_NUM_POLLS_BEFORE_KILL} ]; then kill -KILL $left; fi
  sleep 1
done
"""


@contextmanager
def ends_with_this_process() -> Iterator[None]:
    """Make all processes that Ray starts in the block, and their children, end soon after this process.

    Ray's own processes end with this process, but the agents that they start would wait a minute for a server that has
    already ended. So a watcher, which is a shell process, reads a pipe that only this process holds open. The pipe
    closes when this process ends, even after SIGKILL. The watcher then gives the other processes a few seconds to end,
    and kills those that are left. It finds them by an environment variable.
    """
    mark = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != _MARK}
    # This process never closes the write end of the pipe, and none of its children inherits it.
    to_read, _ = os.pipe()
    os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _SCRIPT, "sh", mark],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, to_read, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
    )
    os.close(to_read)
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        # The variable is removed, because other programs that this process starts may outlive this process.
        del os.environ[_MARK]
