"""The base class of all settings, and the paths and URIs in settings."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

import mpa_ray
from mpa_ray.config.setting_path import SettingType
from mpa_ray.redaction import has_url_secrets
from mpa_ray.textual import is_storable

BUNDLED = "bundled:"
"""The prefix of a path inside the package, such as `bundled:demo/models/teacher`."""

_SCHEME = re.compile(
    r"(?P<scheme>s3[an]?|gs|gcs|https?|file|hdfs|abfss?|az|synthetic):(?P<slashes>/*)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)

_BUCKET = {"s3": re.compile(r"[A-Za-z0-9._-]{1,255}|arn:.+", re.DOTALL), "gs": re.compile(r"[a-z0-9._-]{3,222}")}
"""The names that buckets may have, by scheme. Other stores with the API of S3 allow more names than AWS does."""
_MAX_NAME_LENGTH = 60
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{_MAX_NAME_LENGTH - 1}}}")
_FILE_ENDINGS = (".json", ".jsonl", ".yaml", ".yml", ".parquet", ".html", ".log", ".lock", ".tmp")
_SCHEMES = (*_BUCKET, "http", "https", "file", "synthetic")
_OTHER_NAMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}


def misspelled_uri(text: str) -> str | None:
    """The right spelling of a misspelled URI such as `s3:/bucket/x` or `S3://bucket/x`; None for any other text."""
    match = _SCHEME.fullmatch(text)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    scheme = _OTHER_NAMES.get(scheme, scheme)
    right = f"{scheme}://{'/' if scheme == 'file' else ''}{match['rest']}"
    return right if text != right and not (scheme == "file" and text.startswith("file://")) else None


def parse_location(text: str) -> str:
    """Check a path or URI. Replace a leading `~` with the home folder, and a `file:///` URI with its path.

    Raises:
        ValueError: the text is empty, a misspelled URI, a URI of an unsupported kind or without a bucket, or a URL with
            a secret; or it begins with `~` and the user has no home folder.
    """
    if not text.strip():
        raise ValueError("is empty")
    if (right := misspelled_uri(text)) is not None:
        raise ValueError(f"is a misspelled URI: write {right}")
    scheme, separator, rest = text.partition("://")
    if separator and "/" not in scheme and scheme not in _SCHEMES:
        raise ValueError(f"{scheme}:// is not supported: give a local path or an s3:// URI, or for images a gs:// URI")
    bucket, _, _ = rest.partition("/")
    if scheme in _BUCKET and separator and not _BUCKET[scheme].fullmatch(bucket):
        problem = f"{bucket!r} cannot be the name of a bucket" if bucket else "names no bucket"
        raise ValueError(f"{problem}: write {scheme}://BUCKET/PREFIX")
    if "://" in text and has_url_secrets(text):
        raise ValueError(
            "a URL with a password or signature would end up in run.json; give credentials in the environment instead"
        )
    if scheme == "file" and rest.startswith("/") and is_storable(path := os.fsdecode(unquote_to_bytes(rest))):
        return path
    path = os.path.expanduser(text)
    if path == "~" or path.startswith("~/"):
        raise ValueError("~ stands for the home folder, and this user has none: write the whole path")
    return path


Location = Annotated[str, AfterValidator(parse_location)]
"""A path or a URI."""


def parse_name(text: str) -> str:
    """Check a name that a user gives to a part of a run, such as a student. Folders and files of the run use the name.

    Raises:
        ValueError: the name has characters other than letters, digits, `.`, `_` and `-`, does not begin with a letter
            or digit, is too long, or ends in a file name ending such as `.json`.
    """
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"is not a plain name: use letters, digits, `.`, `_` and `-`, with a letter or digit first, and at most "
            f"{_MAX_NAME_LENGTH} of them"
        )
    if text.lower().endswith(_FILE_ENDINGS):
        raise ValueError("is the name of a file: leave out its ending")
    return text


Name = Annotated[str, AfterValidator(parse_name)]
"""The name of a part of a run."""


def check_distinct(setting: str, names: list[str]) -> None:
    """Check that the names of parts of a run are distinct. The names become folder names, and some file systems ignore
    case, so names that differ only in case are not distinct.

    Raises:
        ValueError: a name occurs twice.
    """
    if len({name.lower() for name in names}) != len(names):
        raise ValueError(f"{setting}: names must differ, and not only in case, got {names}")


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
        """If only some values of a branch are set, take the others from the default of the branch's field, which may
        differ from the defaults of the branch's class."""
        if not isinstance(data, dict):
            return data
        data = {name: _as_number(name, value, cls.model_fields.get(name)) for name, value in data.items()}
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        branches = {
            name: _with_defaults(data[name], default)
            for name, default in defaults.items()
            if isinstance(default, Settings) and isinstance(data.get(name), dict)
        }
        return {**data, **branches}


def _as_number(name: str, value: Any, field: FieldInfo | None) -> Any:
    """Refuse true and false for a setting that is a number. Read whole numbers in any notation, such as 1e4."""
    kind = None if field is None else SettingType.of(field.annotation).annotation
    if kind in (int, float) and isinstance(value, bool):
        raise ValueError(f"{name}: is not a {'whole ' if kind is int else ''}number")
    if kind is int and isinstance(value, str) and "e" in value.lower():
        with suppress(ValueError):
            return float(value)
    return value


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
    """Resolve a `bundled:` path, and make an existing path absolute, because workers have different working
    directories."""
    if path.startswith(BUNDLED):
        return str(Path(mpa_ray.__file__).parent / path.removeprefix(BUNDLED))
    return str(Path(path).absolute()) if Path(path).exists() else path
