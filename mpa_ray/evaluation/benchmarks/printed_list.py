"""Read lists from text fields that hold them in Python's notation. pandas writes lists into CSV files in this form."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from itertools import pairwise
from typing import Any

_LIST = re.compile(r"\s*(?:array\(|list\()?\[.*\]\s*(?:,\s*dtype=[^)]*)?\)?\s*", re.DOTALL)
_QUOTED = re.compile(r"""\s*(?:array\(|list\()?\[\s*["'{]""")
"""The beginning of a list whose first item is a text or an object. An answer in brackets never begins like this."""


def parse_printed_list(text: str) -> list[Any] | None:
    """Parse a text that is a list of texts or objects in Python's notation. Return None if the text is not such a list.

    Raises:
        ValueError: it is unclear whether the text is such a list, or the text looks like such a list but cannot be
            read. The message gives the reason.
    """
    if _LIST.fullmatch(text) is None:
        return None
    values = _evaluated(text)
    if isinstance(values, list) and values and all(isinstance(value, str | dict) for value in values):
        if _has_adjacent_texts(text):
            raise ValueError("which looks like a printed array: its items have no commas")
        return values
    if isinstance(values, list) and all(isinstance(value, str | dict | int | float | None) for value in values):
        raise ValueError("which may be a printed list or an answer")
    if _QUOTED.match(text):
        raise ValueError("which looks like a printed list and cannot be read as one")
    return None


def _evaluated(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Python warns about unknown escapes in the text, such as those of LaTeX.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _has_adjacent_texts(text: str) -> bool:
    """Whether two string literals follow each other without a comma. Python would join them into one."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
    except (tokenize.TokenError, SyntaxError):
        return False
    kinds = [token.type for token in tokens if token.type not in (tokenize.NL, tokenize.NEWLINE)]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in pairwise(kinds))
