"""Add the run, phase, student and shard to log records, and hide the secrets in their messages.

Ray writes the records as text, or as JSON if the environment has `RAY_LOGGING_CONFIG_ENCODING=JSON`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mpa_ray.redaction import without_secrets

_NO_FIELDS: Mapping[str, str] = {}
_fields: ContextVar[Mapping[str, str]] = ContextVar("fields", default=_NO_FIELDS)


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Add these fields as attributes to every log record in the block, no matter which library logs it."""
    redact_log_records()
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class _RecordFactory:
    """Makes records with the previous factory, hides secrets in their messages, and adds the fields."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        _redact(record)
        record.__dict__.update(_fields.get())
        return record


def _redact(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except (TypeError, ValueError):
        # The arguments do not fit the message. `logging` reports this when the record is written.
        return
    redacted = without_secrets(message)
    if redacted != message:
        record.msg, record.args = redacted, None
    if record.exc_info and record.exc_info[0] is not None:
        # Formatters use this text in place of the exception.
        record.exc_text = without_secrets("".join(traceback.format_exception(*record.exc_info)).removesuffix("\n"))


def redact_log_records() -> None:
    """Hide secrets in every log record of this process from now on, no matter which library logs it."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _RecordFactory):
        logging.setLogRecordFactory(_RecordFactory(make))
