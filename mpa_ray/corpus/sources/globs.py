"""Globs for paths below a folder."""

from __future__ import annotations

import re
from pathlib import Path

_WILDCARD = re.compile(r"[*?\[]")
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)
_MEANINGS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """Split a glob into the folder before its first wildcard and a pattern for the paths below that folder.

    `*` and `?` match characters of one name, `**` any number of folders, `[abc]` one of these characters. A path
    without wildcards, or of an existing file, has no pattern.
    """
    wildcard = _WILDCARD.search(path)
    if wildcard is None or Path(path).exists():
        return path, None
    root, _, _ = path[: wildcard.start()].rpartition("/")
    rest = path[len(root) + 1 :] if root else path
    return root or ("/" if path.startswith("/") else "."), re.compile(glob_expression(rest), re.DOTALL)


def glob_expression(glob: str) -> str:
    """The regular expression that matches the same paths as a glob."""
    return "".join(map(_regular, _TOKENS.findall(glob)))


def _regular(token: str) -> str:
    if len(token) > 1 and token.startswith("["):
        return "[" + token[1:-1].replace("\\", r"\\").replace("!", "^", token[1] == "!") + "]"
    return _MEANINGS.get(token) or re.escape(token)
