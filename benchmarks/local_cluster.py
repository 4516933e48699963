"""An object store and a Ray cluster of two nodes, as processes of this machine that can be killed one by one.

Only processes that were started here are killed, by their process ids.
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
    # Fewer process starts on a small machine: workers start when they are needed, and stay while a trial lasts.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "8",
    # The loss of a node is noticed after 3 seconds instead of 20.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def free_port() -> int:
    """A port of this machine that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(is_reached: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not become true in time; the message begins with `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not is_reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to these processes, but not to another process that was given the id of one of them."""
    victims = list(processes)
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=10)


@contextmanager
def object_store_server(log: Path) -> Iterator[str]:
    """A server with S3's protocol; yields its URL."""
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
    """A node of a Ray cluster: one `ray start --block` and all processes below it."""

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
        """Wait until the node has started.

        Raises:
            RuntimeError: `ray start` has ended.
        """

        def is_up() -> bool:
            if self._command.poll() is not None:
                raise RuntimeError(f"ray start ended: {self._log.read_text()}")
            return "Ray runtime started" in self._log.read_text()

        wait_until(is_up, "a node's start")

    def processes(self) -> list[psutil.Process]:
        """All processes of the node; none if `ray start` has ended."""
        if self._command.poll() is not None:
            return []
        command = psutil.Process(self._command.pid)
        return [command, *command.children(recursive=True)]

    def model_actors(self) -> list[psutil.Process]:
        """Processes that run a model actor or are about to."""
        return [p for raylet in self._raylets() for p in raylet.children() if "ModelActor" in title_of(p)]

    def training_workers(self) -> list[psutil.Process]:
        """Processes that run a worker of Ray Train."""
        return [p for raylet in self._raylets() for p in raylet.children() if "RayTrainWorker" in title_of(p)]

    def terminate(self) -> None:
        """Send SIGTERM to all processes of the node, as a machine does before it is switched off."""
        self._orphans = self.processes()
        for process in self._orphans:
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def kill_raylet(self) -> None:
        self._orphans = self.processes()
        _kill(self._raylets())

    def end(self) -> None:
        """Kill all processes of the node, including those that lost their raylet."""
        _kill([*self.processes(), *self._orphans])
        self._command.wait()

    def _raylets(self) -> list[psutil.Process]:
        """The raylet; an empty list before it has started."""
        return [p for p in psutil.Process(self._command.pid).children() if p.name() == "raylet"]


def title_of(process: psutil.Process) -> str:
    """The command line that the process shows; empty if it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


class Cluster:
    """A Ray cluster of two nodes on this machine. Drivers join the head, so only the worker node can be killed.

    When the context is entered, the head has started and the worker node is starting.
    """

    def __init__(
        self,
        folder: Path,
        head_cpus: int = NODE_CPUS,
        worker_cpus: int = NODE_CPUS,
        takes_jobs: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Prepare the cluster.

        Args:
            folder: Gets the nodes' logs.
            head_cpus: CPUs of the head.
            worker_cpus: CPUs of the worker node.
            takes_jobs: Give the head a dashboard, so that jobs can be submitted.
            environment: More environment variables of the nodes.
        """
        self._folder = folder
        self._head_cpus, self._worker_cpus, self._takes_jobs = head_cpus, worker_cpus, takes_jobs
        self._dashboard_port = free_port()
        # Not in `folder`, since paths of sockets have to be short.
        self._ray_folder = tempfile.mkdtemp(prefix="chaos-")
        self._environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self._environment |= RAY_SETTINGS | CREDENTIALS | {"RAY_AUTH_TOKEN": secrets.token_hex(32), **environment}
        self._port = free_port()
        self._nodes: list[Node] = []
        """All nodes so far: the head, then the worker nodes, of which only the last is in use."""

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
        """The environment for `ray job submit` and the other commands of `ray job`, with the token."""
        return self._environment | {"RAY_ADDRESS": self.dashboard}

    @property
    def dashboard(self) -> str:
        """The dashboard's URL."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def session(self) -> Path:
        """The folder of Ray's logs and of the files that jobs upload."""
        return Path(self._ray_folder, "session_latest")

    def wait_until_whole(self) -> None:
        """Wait until the worker node has started."""
        self._nodes[-1].wait_until_up()

    def model_actors(self) -> list[psutil.Process]:
        return [*self._nodes[0].model_actors(), *self.model_actors_of_worker()]

    def model_actors_of_worker(self) -> list[psutil.Process]:
        return self._nodes[-1].model_actors()

    def training_workers(self) -> list[psutil.Process]:
        """The workers of trainings on both nodes."""
        return [worker for node in (self._nodes[0], self._nodes[-1]) for worker in node.training_workers()]

    def preempt_worker_node(self, notice_s: float) -> list[psutil.Process]:
        """End the worker node as a cloud ends a spot machine, with a notice, and start another one.

        Args:
            notice_s: Seconds from SIGTERM to SIGKILL.

        Returns:
            The model actors that ran on it.
        """
        node = self._nodes[-1]
        actors = node.model_actors()
        node.terminate()
        time.sleep(notice_s)
        node.end()
        self._start_worker()
        return actors

    def replace_worker_node(self, all_at_once: bool = False) -> list[psutil.Process]:
        """Kill the worker node and start another one.

        Args:
            all_at_once: Kill all processes of the node, as if the machine was lost, and not the raylet alone.

        Returns:
            The model actors that ran on it.
        """
        node = self._nodes[-1]
        actors = node.model_actors()
        if all_at_once:
            node.end()
        else:
            node.kill_raylet()
        self._start_worker()
        return actors

    def _start_worker(self) -> None:
        # Nodes that share a folder delete each other's working directories of jobs.
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
