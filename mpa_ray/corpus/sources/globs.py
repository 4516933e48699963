"""Globs for paths below a folder."""

from __future__ import annotations

import re
from pathlib import Path

_WILDCARD = re.compile(r"[*?\[]")
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)
_MEANINGS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """Split a glob into the folder before its first wildcard and a pattern for the paths below that folder.

    `*` and `?` match characters of one name, `**` matches any number of folders, and `[abc]` matches one of the
    characters a, b and c. The pattern is None for a path without wildcards, and for an existing path. In the name of an
    existing folder, such as `photos [1]`, wildcards are ordinary characters.
    """
    if _WILDCARD.search(path) is None or Path(path).exists():
        return path, None
    folder = _literal_folder(path)
    wildcard = _WILDCARD.search(path, len(folder))
    if wildcard is None:
        return path, None
    root, _, _ = path[: wildcard.start()].rpartition("/")
    rest = path[len(root) + 1 :] if root else path
    return root or ("/" if path.startswith("/") else "."), re.compile(glob_expression(rest), re.DOTALL)


def _literal_folder(path: str) -> str:
    """Return the longest prefix of a path that is an existing folder, with its slash; empty if there is none."""
    ends = [match.end() for match in re.finditer("/", path)]
    return next((path[:end] for end in reversed(ends) if Path(path[:end]).is_dir()), "")


def glob_expression(glob: str) -> str:
    """The regular expression that matches the same paths as a glob."""
    return "".join(map(_regular, _TOKENS.findall(glob)))


def _regular(token: str) -> str:
    if len(token) > 1 and token.startswith("["):
        return "[" + token[1:-1].replace("\\", r"\\").replace("!", "^", token[1] == "!") + "]"
    return _MEANINGS.get(token) or re.escape(token)
