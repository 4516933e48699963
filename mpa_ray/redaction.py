"""Removes secrets from text that is shown or stored: passwords and signatures in URLs, tokens and keys."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""The text that replaces a secret."""
_MIN_LENGTH = 8
"""In characters. A shorter value of an environment variable does not count as a secret."""

_SECRET_NAME = r"""
    (?<![\w.-]) [\w.-]*
    (?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!mask_)(?<!image_)(?<!video_)(?<!special_)
    (?: sig | signature | token | password | passwd | passphrase | pwd | secret | credentials? | authorization
      | (?:api|access|secret|private|account|shared|subscription|encryption)[-_]?key(?:[-_]?id)? )
"""
"""Matches names whose values are secret, by the end of the name: `hf_token`, but not `num_tokens` or `eos_token`."""
_FLAGS = re.IGNORECASE | re.VERBOSE
_NAME = re.compile(_SECRET_NAME, _FLAGS)
_USER = re.compile(r"""(?<=://)(?: [^\s/?#'"<>@]*@ | [^\s/?#'"<>@:]*:(?!\d*[/?#])[^\s'"<>]*@ )""", _FLAGS)
"""The user name and password of a URL. A password may contain a slash."""
_PARAMETER = re.compile(rf"""(?<=[?&;\#]){_SECRET_NAME}=(?P<value>[^&;\#\s'"<>]*[^&;\#\s'"<>:,.)\]}}])""", _FLAGS)
"""A secret parameter of a URL."""
_TOKEN = re.compile(
    r"\b(?:hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|A(?:KI|SI)A[0-9A-Z]{16})\b"
    r"|(?<=\bBearer )[\w.~+/=-]{8,}|(?<=\bBasic )[\w.~+/=-]{8,}"
)
"""Tokens that can be recognised without a name before them."""
_ASSIGNED = re.compile(
    rf"""{_SECRET_NAME} (?: \s*=\s* | ['"]\s*[:,]\s* )
    (?: b?'(?P<single>[^']*) | b?"(?P<double>[^"]*)
      | (?P<bare>(?!\*\*\*)[^\s'",;&)}}\]]*[^\s'",;&)}}\]:.]) )""",
    _FLAGS,
)
"""A secret after its name, as in `name=value` or `'name': 'value'`."""
_OPTION = re.compile(rf"(?<![\w.-])(?=--){_SECRET_NAME}\s+(?P<value>(?!-)\S+)", _FLAGS)
"""A secret that is the value of a command-line option."""


def without_secrets(text: str) -> str:
    """The text of a message, a log or a report with `***` in place of every secret."""
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    text = without_url_secrets(text)
    for pattern in (_TOKEN, _ASSIGNED, _OPTION):
        text = pattern.sub(_hide, text)
    return text


def without_url_secrets(text: str) -> str:
    """The text with `***` in place of passwords and signatures in URLs.

    Meant for stored data, where text such as `token: x` may be part of a question and is not a secret.
    """
    if "@" in text:
        text = _USER.sub(f"{HIDDEN}@", text)
    return _PARAMETER.sub(_hide, text) if "=" in text else text


def without_url_secrets_within(value: Any) -> Any:
    """Apply `without_url_secrets` to all texts in a tree of mappings and lists. Tuples become lists, as in JSON.

    Do this before the tree becomes JSON. In JSON, a quotation mark may have a backslash before it, and this backslash
    would count as a part of a signature.
    """
    if isinstance(value, Mapping):
        return {without_url_secrets_within(key): without_url_secrets_within(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_url_secrets_within(item) for item in value]
    return without_url_secrets(value) if isinstance(value, str) else value


def has_url_secrets(url: str) -> bool:
    """Whether a URL has a user name, a password or a signature."""
    return _USER.search(url) is not None or _PARAMETER.search(url) is not None


def without_secret_values(value: Any, *, is_secret: bool = False) -> Any:
    """A tree of mappings and lists, such as a configuration, with `***` in place of every secret.

    Args:
        value: The tree. Tuples in it become lists, as in JSON.
        is_secret: Whether all values of the tree are secret.
    """
    if isinstance(value, Mapping):
        return {
            key: without_secret_values(item, is_secret=is_secret or _NAME.fullmatch(str(key)) is not None)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secret_values(item, is_secret=is_secret) for item in value]
    if is_secret and value is not None and not isinstance(value, bool):
        return HIDDEN
    # Secrets of the environment are not replaced, because the result must not depend on the machine.
    return _TOKEN.sub(HIDDEN, without_url_secrets(value)) if isinstance(value, str) else value


def _hide(match: re.Match[str]) -> str:
    """The match with `***` in place of its only named group, or of the whole match if it has no such group."""
    group = match.lastgroup
    if group is None:
        return HIDDEN
    start, end = (position - match.start() for position in match.span(group))
    return match[0][:start] + HIDDEN + match[0][end:]


def _environment_secrets() -> list[str]:
    """The values of the environment variables with secret names, the longest first."""
    named = (value for name, value in os.environ.items() if _NAME.fullmatch(name))
    # Paths are left out, because the name of the variable PWD looks like that of a password, but PWD holds a path.
    values = {value for value in named if len(value) >= _MIN_LENGTH and not value.startswith("/")}
    return sorted(values, key=len, reverse=True)
