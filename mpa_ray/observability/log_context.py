"""Log records that say to which run, phase, student and shard they belong.

Ray writes them: as text, or as JSON where the environment has `RAY_LOGGING_CONFIG_ENCODING=JSON`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NOTHING: Mapping[str, str] = {}
_names: ContextVar[Mapping[str, str]] = ContextVar("names", default=_NOTHING)


@contextmanager
def about(**names: str) -> Iterator[None]:
    """Every record that is logged in the block, by whichever library, carries these names as attributes."""
    _install()
    token = _names.set({**_names.get(), **names})
    try:
        yield
    finally:
        _names.reset(token)


def names_of(label: str) -> dict[str, str]:
    """Of a step as it is told of (`level small`) or a pool as Ray shows it (`annotate:teacher`)."""
    phase, _, student = label.replace(":", " ", 1).partition(" ")
    return {"phase": phase, "student": student} if student else {"phase": phase}


class _Factory:
    """Makes records as before, and adds the names."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self._make(*arguments, **named)
        record.__dict__.update(_names.get())
        return record


def _install() -> None:
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Factory):
        logging.setLogRecordFactory(_Factory(make))
