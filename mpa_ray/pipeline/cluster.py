"""The Ray cluster that this process uses: joining or starting it, its resources, and the settings of Ray Data."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray._private.log import PlainRayHandler
from ray.data import DataContext
from ray.exceptions import RayError

import mpa_ray
from mpa_ray.errors import ConfigError, Unfinished
from mpa_ray.errors.remedies import Remedy
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.library_output import LIBRARY_OUTPUT, shows_library_lines, shows_worker_lines
from mpa_ray.observability.progress import say
from mpa_ray.pipeline.autoscaler import use_whole_cluster
from mpa_ray.pipeline.cluster_address import check_cluster, cluster_address
from mpa_ray.pipeline.machine import Need, num_local_cpus, unmet_by_nodes
from mpa_ray.pipeline.ray_watcher import ends_with_this_process

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Environment variables that keep glibc from returning every large tensor to the system. Without them, a training step
on a CPU takes several times as long, and most of that time goes to page faults."""

_JOIN_S = 120.0
"""The time limit for joining a cluster that answers."""

_starting = threading.Lock()


def start_ray() -> None:
    """Join the cluster of this job, or start Ray on this machine. May be called from any thread and more than once.

    Raises:
        ConfigError: the cluster cannot be joined, or Ray cannot start here.
        Unfinished: the cluster does not answer, or Ray does not start in time.
    """
    with _starting:
        if ray.is_initialized():
            return
        check_cluster()
        address, started = cluster_address(), Future[None]()
        threading.Thread(target=_start_and_stay, args=(started,), daemon=True).start()
        if address is None:
            _wait_until_started(started)
        else:
            _wait_until_joined(address, started)


def _wait_until_started(started: Future[None]) -> None:
    """Wait until Ray runs on this machine, and report in one line that it did not start in time."""
    try:
        started.result()
    except Exception as error:
        # Ray raises this class itself if one of its processes does not start in time, such as on a busy machine.
        if type(error) is not Exception:
            raise
        problem = f"Ray did not start on this machine: {' '.join(str(error).split()).rstrip('.')}"
        raise Unfinished(f"{problem}. {Remedy.SAME_COMMAND}") from error


def _wait_until_joined(address: str, started: Future[None]) -> None:
    """Wait until the cluster is joined, and report an error of Ray in one line."""
    try:
        started.result(timeout=_JOIN_S)
    except (ConnectionError, RuntimeError, ValueError) as error:
        # Ray also raises one of these errors if the cluster has a different version of Ray or of Python.
        remedy = "Set it to HOST:PORT of a running cluster with the same versions, or unset it to use this machine."
        # Raised without a cause, because an error that was caused by a ConnectionError counts as temporary.
        raise ConfigError("RAY_ADDRESS", address, f"cannot be joined: {in_words(error)}", remedy) from None
    except (TimeoutError, RayError) as error:
        problem = f"the Ray cluster at RAY_ADDRESS = {address!r} cannot be joined: {in_words(error).rstrip('.')}"
        raise Unfinished(f"{problem}. {Remedy.SAME_COMMAND}") from error


def _start_and_stay(started: Future[None]) -> None:
    """Start Ray in a thread that never ends.

    Ray's local processes ask Linux to kill them when the thread that started them ends, so the thread of a phase must
    not start them. Outside the main thread, Ray cannot handle SIGTERM and warns about this; `cli/run_job.py` handles
    the signal instead.
    """
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in str(record.msg))
    try:
        _start_ray()
    except BaseException as error:  # noqa: BLE001
        started.set_exception(error)
        return
    started.set_result(None)
    threading.Event().wait()


def _start_ray() -> None:
    # By default Ray's workers, and the engines in them, yield to every other process of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    variables = {"PYTHONPATH": os.pathsep.join(_import_paths()), **MALLOC}
    where: dict[str, Any] = {"runtime_env": {"env_vars": variables}}
    is_local = cluster_address() is None
    if is_local:
        where = {"address": "local", "num_cpus": num_local_cpus(), "include_dashboard": False}
        # Ray's local processes inherit the variables. With a runtime environment, the processes that Ray starts in
        # advance would be unused, and each of them takes about a second of CPU time to start.
    shows_lines = shows_worker_lines()
    LIBRARY_OUTPUT.redirect()
    if not shows_lines:
        _send_warnings_to_stderr()
    # If standard error goes to a log file, Ray may write all its messages there.
    is_quiet = not shows_lines and not LIBRARY_OUTPUT.is_redirected
    try:
        with _environment(variables if is_local else {}), ends_with_this_process() if is_local else nullcontext():
            ray.init(**where, log_to_driver=shows_lines, logging_level="ERROR" if is_quiet else "INFO")
    except BaseException:
        if is_local:
            LIBRARY_OUTPUT.reveal()
        else:
            LIBRARY_OUTPUT.restore()
        raise
    LIBRARY_OUTPUT.keep_in(Path(ray._private.worker._global_node.get_logs_dir_path()))


def _send_warnings_to_stderr() -> None:
    """Make Ray print the warnings of its own processes to standard error, like the output of other libraries.

    By default, Ray prints these warnings to standard output, even with `log_to_driver=False`.
    """
    print_line = ray._private.worker.print_to_stdstream
    if not getattr(print_line, "to_stderr", False):
        ray._private.worker.print_to_stdstream = _ToStderr(print_line)


class _ToStderr:
    """Ray's function that prints lines of other processes, changed to always use standard error."""

    to_stderr = True

    def __init__(self, print_line: Callable[..., None]) -> None:
        self._print_line = print_line

    def __call__(self, data: dict[str, Any], ignore_prefix: bool) -> None:
        self._print_line({**data, "is_err": True}, ignore_prefix=ignore_prefix)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block, then restore their previous values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_paths() -> list[str]:
    root = str(Path(mpa_ray.__file__).parents[1])
    return [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def cluster_resources() -> tuple[float, float]:
    """The CPUs and GPUs of all nodes that are up."""
    start_ray()
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def check_resources(need: Need) -> None:
    """Check that a node is large enough for one engine or worker. On a cluster, which may grow, only warn.

    Raises:
        ConfigError: this machine is too small. The error names the setting.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    error = unmet_by_nodes(need, nodes)
    if error is None:
        return
    if cluster_address() is None:
        raise error
    say(f"WARNING: {error} Until then, the command waits.")


def configure_ray_data() -> None:
    """Let passes use the whole cluster, and hide Ray Data's progress bars and messages.

    Ray Data still writes all messages to its log file.
    """
    use_whole_cluster()
    if not shows_library_lines():
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, PlainRayHandler):
                handler.setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray warns if a pass has fewer shards than it may read at the same time.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks", UserWarning)
