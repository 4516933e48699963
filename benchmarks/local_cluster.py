"""An object store and a Ray cluster of two nodes, as processes of this machine that can be ended one by one.

Whatever is ended here is ended by its process id, and was started here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil

NODE_CPUS = 2
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    # Fewer processes to start on a small machine: none before it is needed, none given up while a trial lasts.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "8",
    # A node that is gone is noticed after 3 seconds, not 20: the trials need not wait for it.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_until(reached: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)


def _end(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to these processes; one whose id belongs to another by now is left alone."""
    ending = list(processes)
    for process in ending:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ending, timeout=10)


@contextmanager
def object_store_server(log: Path) -> Iterator[str]:
    """A server that speaks S3's protocol; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as server:

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        try:
            wait_until(listens, "the object store's start")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


class Node:
    """A node of a Ray cluster: one `ray start --block` and all that it starts."""

    def __init__(self, arguments: Sequence[str], num_cpus: int, environment: dict[str, str], log: Path) -> None:
        self._log = log
        self._orphans: list[psutil.Process] = []
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *arguments,
            "--block",
            "--disable-usage-stats",
            f"--num-cpus={num_cpus}",
            "--object-store-memory=200000000",
            "--include-log-monitor=false",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
        ]
        with log.open("w") as out:
            self._command = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until_up(self) -> None:
        def is_up() -> bool:
            if self._command.poll() is not None:
                raise RuntimeError(f"ray start ended: {self._log.read_text()}")
            return "Ray runtime started" in self._log.read_text()

        wait_until(is_up, "a node's start")

    def processes(self) -> list[psutil.Process]:
        if self._command.poll() is not None:
            return []
        command = psutil.Process(self._command.pid)
        return [command, *command.children(recursive=True)]

    def model_actors(self) -> list[psutil.Process]:
        """Processes in which a model actor is at home, or is about to be."""
        return [p for raylet in self._raylets() for p in raylet.children() if "ModelActor" in title_of(p)]

    def kill_raylet(self) -> None:
        self._orphans = self.processes()
        _end(self._raylets())

    def end(self) -> None:
        _end([*self.processes(), *self._orphans])
        self._command.wait()

    def _raylets(self) -> list[psutil.Process]:
        """The one raylet, or none before it is started."""
        return [p for p in psutil.Process(self._command.pid).children() if p.name() == "raylet"]


def title_of(process: psutil.Process) -> str:
    """The command line as the process shows it; empty once it is gone."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


class Cluster:
    """A Ray cluster of two nodes on this machine; drivers join the head, so only the worker node can be killed.

    On entry the head is up, and the worker node soon.
    """

    def __init__(
        self,
        folder: Path,
        head_cpus: int = NODE_CPUS,
        worker_cpus: int = NODE_CPUS,
        takes_jobs: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """With `takes_jobs` the head has a dashboard, to which jobs are submitted; nodes get `environment`, too."""
        self._folder = folder
        self._head_cpus, self._worker_cpus, self._takes_jobs = head_cpus, worker_cpus, takes_jobs
        self._dashboard_port = free_port()
        # Paths of sockets must be short, so not in `folder`.
        self._ray_folder = tempfile.mkdtemp(prefix="chaos-")
        self._environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self._environment |= RAY_SETTINGS | CREDENTIALS | {"RAY_AUTH_TOKEN": secrets.token_hex(32), **environment}
        self._port = free_port()
        self._nodes: list[Node] = []
        """All there ever were: the head, then one worker node after the other."""

    def __enter__(self) -> Cluster:
        try:
            self._start(
                self._head_cpus,
                "--head",
                f"--port={self._port}",
                f"--temp-dir={self._ray_folder}",
                f"--ray-client-server-port={free_port()}",
                f"--dashboard-port={self._dashboard_port}",
                f"--include-dashboard={str(self._takes_jobs).lower()}",
                "--no-monitor",
            )
            self._nodes[0].wait_until_up()
            self._start_worker()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def driver_environment(self) -> dict[str, str]:
        return self._environment | {"RAY_ADDRESS": f"127.0.0.1:{self._port}"}

    @property
    def submitter_environment(self) -> dict[str, str]:
        """Of `ray job submit`, `ray job logs` and the like, with the token."""
        return self._environment | {"RAY_ADDRESS": self.dashboard}

    @property
    def dashboard(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def session(self) -> Path:
        """Where Ray keeps logs and what jobs bring."""
        return Path(self._ray_folder, "session_latest")

    def wait_until_whole(self) -> None:
        self._nodes[-1].wait_until_up()

    def model_actors(self) -> list[psutil.Process]:
        return [*self._nodes[0].model_actors(), *self.model_actors_of_worker()]

    def model_actors_of_worker(self) -> list[psutil.Process]:
        return self._nodes[-1].model_actors()

    def replace_worker_node(self, all_at_once: bool = False) -> list[psutil.Process]:
        """SIGKILL to the worker node's raylet, or to all of its processes as where a machine is taken away, and another
        node in its place; the model actors that went with it."""
        node = self._nodes[-1]
        actors = node.model_actors()
        if all_at_once:
            node.end()
        else:
            node.kill_raylet()
        self._start_worker()
        return actors

    def _start_worker(self) -> None:
        # A folder of its own, as on a machine of its own: nodes that share one take a job's working directory from
        # under each other.
        folder = Path(self._ray_folder, f"{len(self._nodes)}")
        folder.mkdir()
        self._start(self._worker_cpus, f"--address=127.0.0.1:{self._port}", f"--temp-dir={folder}")

    def _start(self, num_cpus: int, *arguments: str) -> None:
        log = self._folder / f"node-{len(self._nodes)}.log"
        self._nodes.append(Node(arguments, num_cpus, self._environment, log))

    def _end(self) -> None:
        for node in reversed(self._nodes):
            node.end()
        shutil.rmtree(self._ray_folder, ignore_errors=True)
