"""Checks that Ray can be joined or started, in seconds and before any work is done. This module does not import Ray."""

from __future__ import annotations

import os
import socket
from datetime import datetime

from mpa_ray.errors import ConfigError, Unfinished
from mpa_ray.storage.deadline import call_with_deadline

_ADDRESS = "RAY_ADDRESS"
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 8.0, 8.0
DEADLINE_S = 22.0
"""The time limit of the whole check, including the lookup of the host, because a name server may not answer either."""
_MAX_SOCKET_PATH_BYTES = 107
_UNSET = "Unset RAY_ADDRESS to use this machine, or set it to HOST:PORT of a running cluster."
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes that a gRPC client sends: the preface of HTTP/2, and an empty SETTINGS frame."""
_SETTINGS_FRAME = 4


def cluster_address() -> str | None:
    """The cluster that `RAY_ADDRESS` names; None if the command starts Ray on this machine."""
    address = os.environ.get(_ADDRESS, "").strip()
    return None if address in ("", "local") else address


def check_cluster(answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
    """Check that the cluster of `RAY_ADDRESS` answers or, without one, that Ray can start on this machine.

    Args:
        answer_timeout_s: The time in which the cluster must answer once a connection is made.

    Raises:
        ConfigError: the address is malformed, nothing listens there, or a server that is not Ray's listens there; or
            the path of the folder for temporary files is too long for Ray.
        Unfinished: the address does not answer.
    """
    address = cluster_address()
    if address is None:
        _check_temporary_folder()
    elif address != "auto":
        # With `auto`, Ray itself looks for a cluster on this machine.
        _check_address(address, answer_timeout_s)


def _check_temporary_folder() -> None:
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    session = datetime.now().strftime(f"session_%Y-%m-%d_%H-%M-%S_%f_{os.getpid()}")
    most = _MAX_SOCKET_PATH_BYTES - len(f"/ray/{session}/sockets/plasma_store")
    if len(os.fsencode(folder)) > most:
        problem = f"is too long: Ray creates sockets below it, so its path may have at most {most} bytes."
        raise ConfigError(name, folder, problem, "Set RAY_TMPDIR to a folder with a shorter path, such as /tmp.")


def _check_address(address: str, answer_timeout_s: float) -> None:
    if "://" in address:
        problem = (
            "is the address of Ray's client server or dashboard, and this command needs the cluster's own address."
        )
        remedy = "Set it to HOST:PORT of the head node (the port is usually 6379), or use ray job submit."
        raise ConfigError(_ADDRESS, address, problem, remedy)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(_ADDRESS, address, "is not an address HOST:PORT.", _UNSET)
    try:
        answer = call_with_deadline(lambda: _greet(host.strip("[]"), int(port), answer_timeout_s), DEADLINE_S, address)
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError) as error:
        problem = "names no running cluster: nothing listens there."
        if not isinstance(error, ConnectionRefusedError):
            problem = "is not the address of a Ray cluster: the server closed the connection."
        # Raised without a cause, because an error that was caused by a ConnectionError counts as temporary.
        raise ConfigError(_ADDRESS, address, problem, _UNSET) from None
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise _no_answer(address, f"its host name cannot be resolved now ({error.strerror})") from error
        problem = f"names a host that cannot be found ({error.strerror})."
        raise ConfigError(_ADDRESS, address, problem, _UNSET) from error
    except OSError as error:
        raise _no_answer(address, f"it does not answer ({error.strerror or error})") from error
    if answer is not None and not _is_http2(answer):
        raise ConfigError(
            _ADDRESS, address, "is not the address of a Ray cluster: a server of another kind answers there.", _UNSET
        )


def _greet(host: str, port: int, answer_timeout_s: float) -> bytes | None:
    """The first bytes that the server sends to a gRPC client; None if the cluster uses TLS."""
    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return None
        connection.settimeout(answer_timeout_s)
        connection.sendall(_HELLO)
        answer = b""
        while len(answer) < len(_HELLO) and not _is_http2(answer) and (part := connection.recv(64)):
            answer += part
        return answer


def _is_http2(answer: bytes) -> bool:
    """Whether an answer begins with a SETTINGS frame, which every gRPC server sends first."""
    return len(answer) > _SETTINGS_FRAME - 1 and answer[3] == _SETTINGS_FRAME and answer[0] == 0


def _no_answer(address: str, problem: str) -> Unfinished:
    return Unfinished(
        f"the Ray cluster at RAY_ADDRESS = {address!r} cannot be joined: {problem}. Run the same command again when it "
        "answers, or unset RAY_ADDRESS to use this machine."
    )
