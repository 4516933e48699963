"""Log records that name the run, phase, student and shard that they belong to.

Ray writes them as text, or as JSON if the environment has `RAY_LOGGING_CONFIG_ENCODING=JSON`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NO_FIELDS: Mapping[str, str] = {}
_fields: ContextVar[Mapping[str, str]] = ContextVar("fields", default=_NO_FIELDS)


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Add these fields as attributes to every log record in the block, no matter which library logs it."""
    _install()
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class _RecordFactory:
    """Makes records with the previous factory, and adds the fields."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        record.__dict__.update(_fields.get())
        return record


def _install() -> None:
    make = logging.getLogRecordFactory()
    if not isinstance(make, _RecordFactory):
        logging.setLogRecordFactory(_RecordFactory(make))
