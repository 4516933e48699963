"""No engine outlives its owner: an actor's process group ends when the actor does, however it ends."""

from __future__ import annotations

import os
import subprocess


def end_group_with_this_process() -> subprocess.Popen[bytes]:
    """Make this process the leader of its group and start a watcher that kills the group once this process is gone.

    A vLLM engine is two more processes that spin while they wait; when their actor or its driver is killed they would
    stay. The watcher reads a pipe that only this process holds open, so it also notices SIGKILL.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    return subprocess.Popen(
        ["/bin/sh", "-c", f"cat > /dev/null; kill -KILL -- -{os.getpid()}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
