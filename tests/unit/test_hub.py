"""Models on the hub: found, missing, and where the hub does not answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigError
from mpa_ray.models.hub import Hub

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def store(cache: Path, model: str) -> None:
    """Put a config.json in the cache."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(tmp_path: Path, silent_server: str) -> None:
    hub = Hub(silent_server, tmp_path, timeout_s=0.5)
    store(tmp_path, "owner/base")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"the hub cannot be reached \(.*Timeout.*Did you mean owner/base\?"):
        hub.file("owner/bass", "config.json")
    first = time.monotonic() - started
    assert first < 5
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        hub.file("owner/other", "config.json")
    # The second model does not wait again.
    assert time.monotonic() - started - first < 0.5


def test_a_model_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    hub = Hub("http://127.0.0.1:9", tmp_path)
    store(tmp_path, "owner/name")
    assert hub.file("owner/name", "config.json").read_text() == "{}"
    assert hub.commit("owner/name") == COMMIT


def test_the_error_in_offline_mode_names_the_variable_and_no_network(tmp_path: Path, silent_server: str) -> None:
    hub = Hub(silent_server, tmp_path, is_offline=True)
    for load in (lambda: hub.file("owner/none", "config.json"), lambda: hub.snapshot("owner/none")):
        with pytest.raises(ConfigError, match=r"Unset HF_HUB_OFFLINE, or download the model first\.$"):
            load()
