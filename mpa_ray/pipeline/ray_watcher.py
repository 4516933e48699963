"""End the processes of a local Ray with the command that started it, even if the command is killed."""

from __future__ import annotations

import os
import subprocess
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
    """Let all processes that Ray starts in the block, and their children, end with this process.

    Ray's own processes end with it, but the agents that they start wait a minute for a server that has ended. A watcher
    reads a pipe that only this process holds open, so it notices the end even after SIGKILL. It first lets the
    processes end in order, and then kills those that are left. It knows them by an environment variable.
    """
    mark = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != _MARK}
    # The object is kept by the pipe: `Popen` closes its end when it is deleted.
    _watchers.append(
        subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "sh", mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
    )
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        # Other programs that this process starts may outlive it.
        del os.environ[_MARK]


_watchers: list[subprocess.Popen[bytes]] = []
"""Their pipes stay open until this process ends."""
