"""Decides which files of a folder are left out, and the label under which each of them is counted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.sources.globs import glob_expression

_ENDING = re.compile(r"[A-Za-z0-9_-]{1,10}")
_SYSTEM_NAMES = (
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
)
"""Folders that operating systems and storage devices create. Names that begin with a dot count as hidden and need no
entry here."""


@dataclass(frozen=True)
class LeftOut:
    """A file, or a row of a list, that a listing leaves out."""

    label: str
    """The label under which the file or row is counted, such as `.heic`, `no ending` or `._* (AppleDouble)`."""
    setting: str | None = None
    """The source setting because of which the file or row is left out, such as `min_bytes`; None if there is no such
    setting."""


@dataclass(frozen=True)
class NameFilter:
    """Leaves out hidden files, files that operating systems create, and files that the user excludes."""

    exclude: tuple[str, ...] = ()
    """Globs. A glob without a slash matches the name of a file or folder. A glob with a slash matches a path below the
    root."""
    include_hidden: bool = False
    _patterns: tuple[tuple[bool, re.Pattern[str]], ...] = field(init=False, repr=False)
    """For each glob of `exclude`: whether it matches single names, and its regular expression."""

    def __post_init__(self) -> None:
        patterns = [
            ("/" not in glob.rstrip("/"), re.compile(glob_expression(glob.strip("/")) + "(?:/.*)?", re.DOTALL))
            for glob in self.exclude
        ]
        object.__setattr__(self, "_patterns", tuple(patterns))

    @classmethod
    def of(cls, config: SourceConfig) -> NameFilter:
        """The filter of a source's settings."""
        return cls(config.exclude, config.include_hidden)

    def left_out(self, path: str) -> LeftOut | None:
        """Return why a file or folder is left out; None if it is kept.

        Args:
            path: The path below the root. The path of a folder ends in a slash.
        """
        names = path.rstrip("/").split("/")
        for matches_names, pattern in self._patterns:
            if any(map(pattern.fullmatch, names)) if matches_names else pattern.fullmatch(path.rstrip("/")):
                return LeftOut("excluded (source.exclude)", "exclude")
        return None if self.include_hidden else _hidden(names)


def _hidden(names: list[str]) -> LeftOut | None:
    for name in names:
        if name in _SYSTEM_NAMES:
            return LeftOut(f"{name} (system folder)")
        if name.startswith("._"):
            return LeftOut("._* (AppleDouble)")
        if name.startswith(".") and name not in (".", ".."):
            return LeftOut(".* (hidden)")
    return None


def by_ending(path: str, needs: dict[str, str] | None = None) -> LeftOut:
    """Return the `LeftOut` of a file whose ending is not the ending of an image.

    Args:
        path: The path below the root.
        needs: For each ending of files that cannot be read yet, the extra to install. Endings are in lower case, with
            the dot.
    """
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    if not dot or not stem:
        return LeftOut("no ending")
    if not _ENDING.fullmatch(ending):
        return LeftOut("other endings")
    label = f".{ending.lower()}"
    need = (needs or {}).get(label)
    return LeftOut(f"{label} (needs {need})" if need else label)
