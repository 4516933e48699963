"""Decode the JSON in a teacher's reply, including JSON whose strings contain LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_START = re.compile(r"[{\[]\s*+[\"{]")
_MAX_STARTS = 16
"""How many possible starts of JSON are tried. The limit is needed, since each try may read to the end of the reply."""
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str, strict=False)
"""Decodes numbers as text, so that the answer 3.50 does not become 3.5."""
_COMMANDS = (
    # after a line feed
    *("nabla", "natural", "nearrow", "neg", "neq", "nexists", "ngeq", "nleq", "nmid", "not", "notin", "nparallel"),
    *("nrightarrow", "nsubseteq", "nu", "nwarrow"),
    # after a carriage return
    *("rangle", "rbrace", "rbrack", "rceil", "rfloor", "rho", "rhd", "right", "rightarrow", "rightleftharpoons", "rm"),
    *("rtimes", "rvert", "rVert"),
    # after a tab
    *("tan", "tanh", "tau", "tbinom", "text", "textbf", "textit", "textrm", "texttt", "textsf", "textstyle", "tfrac"),
    *("therefore", "theta", "tilde", "times", "tiny", "to", "top", "triangle", "triangleq", "triangleleft"),
    *("triangleright",),
)
"""LaTeX commands that JSON would decode as a control character and the rest of the name."""
_BACKSLASH = re.compile(
    rf"""
      \\(?P<escape> ["\\/] | u[0-9a-fA-F]{{4}} )
    | \\(?P<quote>')
    | \\(?P<command> [bf](?=[a-zA-Z]) | (?:{"|".join(sorted(_COMMANDS, key=len, reverse=True))})(?![a-zA-Z]) )
    | \\(?P<control>[bfnrt])
    | \\(?P<other>)
    """,
    re.VERBOSE,
)


def json_values(text: str) -> Iterator[object]:
    """Yield the JSON objects and lists in a text. Text that is not JSON is ignored.

    A backslash before a letter is kept if JSON would otherwise decode a LaTeX command such as `\\frac` as a control
    character, or could not decode it at all.
    """
    if _START.search(text) is None:
        return
    text = _BACKSLASH.sub(_repaired, text)
    at = 0
    for _ in range(_MAX_STARTS):
        start = _START.search(text, at)
        if start is None:
            return
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.start() + 1
        else:
            yield value


def _repaired(backslash: re.Match[str]) -> str:
    if backslash["quote"]:
        return "'"
    return backslash[0] if backslash["escape"] or backslash["control"] else f"\\{backslash[0]}"


def json_text(value: object) -> str:
    """The text of a decoded value; "" if it is neither text, a number nor a truth value."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value).lower()
    # A lone surrogate is legal in JSON but cannot be stored as UTF-8.
    return value.encode(errors="ignore").decode() if isinstance(value, str) else ""
