"""The base class of all settings, and the paths and URIs in settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

import mpa_ray
from mpa_ray.redaction import has_url_secrets

BUNDLED = "bundled:"
"""The prefix of a path inside the package, such as `bundled:demo/models/teacher`."""

_SCHEME = re.compile(
    r"(?P<scheme>s3[an]?|gs|gcs|https?|file|hdfs|abfss?|az|synthetic):(?P<slashes>/*)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)


def misspelled_uri(text: str) -> str | None:
    """The right spelling of a misspelled URI such as `s3:/bucket/x` or `S3://bucket/x`; None for any other text."""
    match = _SCHEME.fullmatch(text)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    right = f"{scheme}://{'/' if scheme == 'file' else ''}{match['rest']}"
    return right if text != right and not (scheme == "file" and text.startswith("file://")) else None


def parse_location(text: str) -> str:
    """Check a path or URI, and replace a leading `~` with the home folder.

    Raises:
        ValueError: the text is empty, a misspelled URI, or a URL with a secret.
    """
    if not text.strip():
        raise ValueError("is empty")
    if (right := misspelled_uri(text)) is not None:
        raise ValueError(f"is a misspelled URI: write {right}")
    if "://" in text and has_url_secrets(text):
        raise ValueError(
            "a URL with a password or signature would end up in run.json; give credentials in the environment instead"
        )
    return os.path.expanduser(text)


Location = Annotated[str, AfterValidator(parse_location)]
"""A path or a URI."""


class Settings(BaseModel):
    """A branch of the configuration tree.

    Unknown keys are refused, and instances are immutable. The docstring of each field is its help text.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _branches_keep_their_defaults(cls, data: Any) -> Any:
        """Fill in the other values of a branch if only some are set. They come from the branch's own default, which may
        differ from the default of its class."""
        if not isinstance(data, dict):
            return data
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        branches = {
            name: _with_defaults(data[name], default)
            for name, default in defaults.items()
            if isinstance(default, Settings) and isinstance(data.get(name), dict)
        }
        return {**data, **branches}


def _with_defaults(values: dict[str, Any], branch: Settings) -> dict[str, Any]:
    kind = getattr(branch, "kind", None)
    if values.get("kind", kind) != kind:
        return values
    defaults = branch.model_dump(exclude_defaults=True)
    return _merged(defaults if kind is None else {"kind": kind, **defaults}, values)


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(default, values[name])
        for name, default in defaults.items()
        if isinstance(default, dict) and isinstance(values.get(name), dict)
    }
    return {**defaults, **values, **nested}


def resolve_path(path: str) -> str:
    """Resolve a `bundled:` path, and make an existing path absolute, because workers have other working directories."""
    if path.startswith(BUNDLED):
        return str(Path(mpa_ray.__file__).parent / path.removeprefix(BUNDLED))
    return str(Path(path).absolute()) if Path(path).exists() else path
