"""Translates pydantic's errors about settings into problems and suggestions for the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from mpa_ray.config.engines import ENGINE_CLASSES
from mpa_ray.config.setting_path import setting_path, settings_at, similar_settings
from mpa_ray.config.settings import Settings
from mpa_ray.errors import did_you_mean

_MAX_SUGGESTIONS = 2
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")
"""Pydantic's error types for a plain value where a mapping is expected."""
_NO_LIST = ("list_type", "tuple_type")
"""Pydantic's error types for another value where a list is expected."""
_KINDS_FOR_TESTS = {
    get_args(engine.model_fields["kind"].annotation)[0] for engine in ENGINE_CLASSES if engine.for_tests
}
_PROBLEMS = {
    "extra_forbidden": "is not a setting.",
    "missing": "is required.",
    **dict.fromkeys(_NO_MAPPING, "is not a mapping of settings."),
    **dict.fromkeys(_NO_LIST, "is not a list."),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "is not a whole number."),
    **dict.fromkeys(("float_type", "float_parsing"), "is not a number."),
    **dict.fromkeys(("bool_type", "bool_parsing"), "is neither true nor false."),
    "finite_number": "is not a finite number.",
    "string_type": "is not text.",
    "greater_than_equal": "is less than {ge}.",
    "greater_than": "is not more than {gt}.",
    "less_than_equal": "is more than {le}.",
    "less_than": "is not less than {lt}.",
    "too_short": "has fewer than {min_length} entries.",
    "string_too_short": "has fewer than {min_length} characters.",
    "union_tag_not_found": "has no `kind`.",
    "union_tag_invalid": "has an unknown `kind`.",
    "literal_error": "is not one of {expected}.",
}
"""The problem for each of pydantic's error types. Names in braces are keys of the error's context."""


def problem_of(error: Mapping[str, Any]) -> str:
    """Return the problem as a sentence without a subject, such as `is not a list.`

    Args:
        error: One of `ValidationError.errors()`.
    """
    form = _PROBLEMS.get(error["type"])
    if form is None:
        return f"{error['msg'].removeprefix('Value error, ')}."
    return form.format(**error.get("ctx", {}))


def suggestion_for(error: Mapping[str, Any], kind: type[Settings]) -> str:
    """Return a sentence that says what the user may have meant or should write, and a space; empty if there is nothing
    to suggest.

    Args:
        error: One of `ValidationError.errors()`.
        kind: The settings that were validated.
    """
    if error["type"] == "extra_forbidden":
        similar = similar_settings(kind, error["loc"])[:_MAX_SUGGESTIONS]
        return f"Did you mean {' or '.join(similar)}? " if similar else ""
    if error["type"] in _NO_MAPPING and (names := settings_at(kind, error["loc"])):
        return f"Write its settings below it, such as {setting_path(kind, error['loc'])}.{names[0]}. "
    if error["type"] in ("literal_error", "union_tag_invalid", "union_tag_not_found"):
        return _of_choices(error)
    if error["type"] in _NO_LIST:
        value = error["input"]
        if isinstance(value, str) and value.startswith("["):
            return "It is not YAML: put quotation marks around its texts, as in ['a', 'b']. "
        return f"Write [{value}]. " if isinstance(value, str | int | float) else "Begin each item with `- `. "
    return ""


def _of_choices(error: Mapping[str, Any]) -> str:
    context = error.get("ctx", {})
    choices = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
    choices = [choice for choice in choices if choice not in _KINDS_FOR_TESTS]
    suggestion = did_you_mean(str(context.get("tag", error["input"])), choices)
    if suggestion or error["type"] == "literal_error":
        # The problem already lists the choices.
        return f"{suggestion} " if suggestion else ""
    return f"Choose one of {', '.join(choices)}. " if choices else ""
