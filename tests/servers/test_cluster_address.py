"""RAY_ADDRESS and the folder for Ray's sockets, checked before a command starts anything and without Ray."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigError, Unfinished
from mpa_ray.pipeline.cluster_address import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, DEADLINE_S, check_cluster

ROOT = Path(__file__).parents[2]
SETTINGS_OF_A_SERVER = bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)) + bytes((0, 3, 0, 0, 0, 100))


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """A server that answers each connection and closes it; without an answer, it stays silent."""
    listener, connections = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()

    def serve() -> None:
        try:
            while True:
                connections.append(listener.accept()[0])
                if answer is not None:
                    connections[-1].recv(64)
                    connections[-1].sendall(answer)
                    connections[-1].close()
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in connections:
            connection.close()


@pytest.fixture
def set_address(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda address: monkeypatch.setenv("RAY_ADDRESS", address)


def test_a_cluster_that_answers_is_accepted(set_address: Callable[[str], None]) -> None:
    with server(SETTINGS_OF_A_SERVER) as address:
        set_address(address)
        check_cluster()


def test_an_address_at_which_nothing_listens_is_refused(set_address: Callable[[str], None]) -> None:
    with server(b"") as address:
        pass
    set_address(address)
    with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS = '{address}': names no running cluster: nothing listens"):
        check_cluster()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_an_address_at_which_something_else_listens_is_refused(
    answer: bytes, set_address: Callable[[str], None]
) -> None:
    with server(answer) as address:
        set_address(address)
        with pytest.raises(ConfigError, match=r"^RAY_ADDRESS = .* is not the address of a Ray cluster"):
            check_cluster(answer_timeout_s=0.2)


def test_a_server_that_is_silent_may_answer_later(set_address: Callable[[str], None]) -> None:
    with server(None) as address:
        set_address(address)
        with pytest.raises(Unfinished, match=r"cannot be joined: it does not answer .* Run the same command again"):
            check_cluster(answer_timeout_s=0.2)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (TimeoutError("timed out"), Unfinished, "it does not answer (timed out)"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Unfinished, "it does not answer (No route to host)"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), Unfinished, "cannot be resolved now (Try again)"),
        (socket.gaierror(socket.EAI_NONAME, "Name unknown"), ConfigError, "a host that cannot be found (Name unknown)"),
    ],
)
def test_the_error_of_a_failing_network_is_named(
    error: OSError,
    kind: type[Exception],
    message: str,
    set_address: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    set_address("head:6379")
    with pytest.raises(kind) as raised:
        check_cluster()
    assert message in str(raised.value)


def test_the_whole_check_takes_less_than_30_seconds() -> None:
    assert CONNECT_TIMEOUT_S + ANSWER_TIMEOUT_S < DEADLINE_S < 29


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "is the address of Ray's client server or dashboard"),
        ("http://head:8265", "is the address of Ray's client server or dashboard"),
        ("head", "is not an address HOST:PORT"),
        ("head:port", "is not an address HOST:PORT"),
        ("head:70000", "is not an address HOST:PORT"),
    ],
)
def test_other_addresses_than_those_of_a_cluster_are_refused(
    address: str, problem: str, set_address: Callable[[str], None]
) -> None:
    set_address(address)
    with pytest.raises(ConfigError, match=problem):
        check_cluster()


@pytest.mark.parametrize("address", ["", "local", "auto"])
def test_addresses_that_name_no_other_machine_are_left_to_ray(address: str, set_address: Callable[[str], None]) -> None:
    set_address(address)
    check_cluster()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_is_too_long_for_sockets_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, f"/tmp/{'long/' * 8}")
    problem = rf"^{name} = '/tmp/long/.*is too long.*Set RAY_TMPDIR to a folder with a shorter path"
    with pytest.raises(ConfigError, match=problem):
        check_cluster()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_cluster()
    # On another machine, only its own folder counts.
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_cluster()


def test_a_command_reports_a_stale_address_in_one_line_and_without_ray(tmp_path: Path) -> None:
    with server(b"") as address:
        pass
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run_dir: {tmp_path}/run\ntask: demo_world\nsource: {{path: {tmp_path}}}\n"
        "teacher: {model: scripted, engine: {kind: scripted}}\n"
        "students: [{name: s, model: scripted, engine: {kind: scripted}}]\n"
    )
    program = (
        "import sys, os; os.environ['RAY_ADDRESS'] = sys.argv[1]; from mpa_ray.cli import main\n"
        "code = main(['align', '--config', sys.argv[2]])\nassert 'ray' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, address, str(config)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), line
    assert line.startswith(f"ConfigError: RAY_ADDRESS = '{address}': names no running cluster")
    assert not (tmp_path / "run").exists()
