"""Load models from the Hugging Face hub at a revision, without a long wait if the hub cannot be reached."""

from __future__ import annotations

import re
import threading
from functools import cache
from pathlib import Path

from mpa_ray.errors import ConfigError, did_you_mean

_NAME = re.compile(r"(?![./~])[\w.-]+/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS_OF_OTHERS = ("original/*", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pt", "*.pth")
"""Files with weights that neither vLLM nor transformers loads from a snapshot."""

_OFFLINE = "cannot be used while HF_HUB_OFFLINE is set"


def is_hub_name(model: str) -> bool:
    """Whether a name has the form `owner/name` or `owner/name@revision`. A local path may also have this form."""
    return _NAME.fullmatch(model) is not None


def split_revision(model: str) -> tuple[str, str | None]:
    """Split `owner/name@revision`. The revision is a branch, a tag or a commit hash; None if the name has none."""
    if not is_hub_name(model):
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


@cache
def process_hub() -> Hub:
    """The hub and the cache that the environment of this process names."""
    from huggingface_hub import constants

    return Hub(constants.ENDPOINT, Path(constants.HF_HUB_CACHE), is_offline=constants.HF_HUB_OFFLINE)


class Hub:
    """A model hub and its local cache.

    If the hub cannot be reached, no further request is sent to it. The commit of a model is looked up once, so that it
    stays the same.
    """

    def __init__(self, endpoint: str, cache: Path, *, is_offline: bool = False, timeout_s: float = 4.0) -> None:
        """Use a hub. Requests are sent only when a model is needed.

        Args:
            endpoint: The URL of the hub.
            cache: The folder with the models that were downloaded earlier.
            is_offline: Whether to use the cache only.
            timeout_s: The time in which the hub must answer. The retries of huggingface_hub would take 24 seconds.
        """
        self._endpoint, self._cache, self._is_offline, self._timeout_s = endpoint, cache, is_offline, timeout_s
        self._is_down = False
        self._commits: dict[str, str] = {}

    def commit(self, model: str) -> str:
        """The hash of the commit that a hub name stands for.

        Raises:
            ConfigError: the model is neither on the hub nor in the cache; the field is `model`.
        """
        revision = split_revision(model)[1]
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision
        if model not in self._commits:
            # The cache has a folder for each commit, with the commit's hash as its name.
            self._commits.setdefault(model, self.file(model, "config.json").parent.name)
        return self._commits[model]

    def snapshot(self, model: str, with_weights: bool = True) -> str:
        """The local folder of a model at a revision. Missing files are downloaded.

        Raises:
            ConfigError: the model is neither on the hub nor in the cache; the field is `model`.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        name, revision = split_revision(model)
        problem = self._problem(model, "config.json")
        try:
            return str(
                snapshot_download(
                    name,
                    revision=revision,
                    ignore_patterns=[*_WEIGHTS_OF_OTHERS, *(() if with_weights else ("*.safetensors", "*.bin"))],
                    etag_timeout=self._timeout_s,
                    local_files_only=problem is not None,
                    endpoint=self._endpoint,
                    cache_dir=self._cache,
                )
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ConfigError(
                "model",
                model,
                f"cannot be downloaded ({type(error).__name__}), and is not in the hub's local cache.",
                _remedy(problem, "Check the name, the revision, the network"),
            ) from error

    def file(self, model: str, name: str) -> Path:
        """A file of a model on the hub: the newest one if the hub answers within seconds, otherwise the one in the
        cache.

        Raises:
            ConfigError: the file is neither on the hub nor in the cache; the field is `model`.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        problem = self._problem(model, name)
        repository, revision = split_revision(model)
        try:
            return Path(
                hf_hub_download(
                    repository,
                    name,
                    revision=revision,
                    etag_timeout=self._timeout_s,
                    local_files_only=problem is not None,
                    endpoint=self._endpoint,
                    cache_dir=self._cache,
                )
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            problem = problem or f"did not provide it ({type(error).__name__})"
            raise ConfigError(
                "model",
                model,
                f"is neither a folder nor in the hub's local cache, and the hub {problem}.",
                did_you_mean(model, self._cached_models()) or _remedy(problem, "Check the name, the network"),
            ) from error

    def _problem(self, model: str, name: str) -> str | None:
        """Why the hub does not provide a file, as the end of a sentence; None if the hub provides it."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        if self._is_offline:
            return _OFFLINE
        if self._is_down:
            return "cannot be reached"
        error = self._error_of_request(model, name)
        if error is None:
            return None
        if isinstance(error, HFValidationError):
            return "does not allow a name of this form"
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return f"returned HTTP status {error.response.status_code}"
        self._is_down = True
        return f"cannot be reached ({type(error).__name__})"

    def _error_of_request(self, model: str, name: str) -> Exception | None:
        """The error of a request for a file's metadata; None if it succeeds."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        errors: list[Exception] = [TimeoutError()]

        def request() -> None:
            try:
                repository, revision = split_revision(model)
                url = hf_hub_url(repository, name, revision=revision, endpoint=self._endpoint)
                get_hf_file_metadata(url, timeout=self._timeout_s, endpoint=self._endpoint)
            except Exception as error:  # noqa: BLE001
                # Network errors are classes of httpx or httpx2, depending on the version of huggingface_hub.
                errors[:] = [error]
            else:
                errors.clear()

        # If the name server does not answer, the request blocks longer than its timeout.
        thread = threading.Thread(target=request, daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        return errors[0] if errors else None

    def _cached_models(self) -> list[str]:
        """The names of the models in the cache."""
        folders = self._cache.glob("models--*--*")
        return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def _remedy(problem: str | None, checks: str) -> str:
    if problem == _OFFLINE:
        return "Unset HF_HUB_OFFLINE, or download the model first."
    return f"{checks} and your access rights."
