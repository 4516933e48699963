"""End an engine's processes with the actor that owns them, even if the actor is killed."""

from __future__ import annotations

import os
import subprocess


def end_group_with_this_process() -> subprocess.Popen[bytes]:
    """Make this process a group leader, and start a watcher that kills the group when this process ends.

    A vLLM engine has two further processes. Without the watcher, both would go on after an actor or driver is killed,
    and each would keep a core busy. The watcher reads a pipe that only this process holds open, so it notices the end
    even after SIGKILL.
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
