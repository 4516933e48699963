"""Models on the hub: found, missing, and where the hub does not answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import file_download

from mpa_ray.errors import ConfigError
from mpa_ray.models import hub
from mpa_ray.models.hub import hub_file

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has asked no hub yet."""
    monkeypatch.setattr(hub, "_down", set())
    for module in (huggingface_hub.constants, file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def use_hub(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def store(cache: Path, model: str) -> None:
    """Put a config.json in the cache."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(
    cache: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_WAIT_S", 0.5)
    use_hub(silent_server, monkeypatch)
    store(cache, "owner/base")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"the hub cannot be reached \(.*Timeout.*Did you mean owner/base\?"):
        hub_file("owner/bass", "config.json")
    first = time.monotonic() - started
    assert first < 5
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        hub_file("owner/other", "config.json")
    # The second model does not wait again.
    assert time.monotonic() - started - first < 0.5


def test_a_model_in_the_cache_needs_no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub("http://127.0.0.1:9", monkeypatch)
    store(cache, "owner/name")
    assert hub_file("owner/name", "config.json").read_text() == "{}"


@pytest.mark.usefixtures("cache")
def test_offline_mode_is_named_and_no_network_is_blamed(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(silent_server, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for load in (lambda: hub_file("owner/none", "config.json"), lambda: hub.hub_snapshot("owner/none")):
        with pytest.raises(ConfigError, match=r"Unset HF_HUB_OFFLINE, or download the model first\.$"):
            load()
