"""Classifies the errors of object stores by their HTTP status and by words in their error codes; exact codes differ
between stores."""

from __future__ import annotations

import re
from enum import StrEnum


class Fault(StrEnum):
    """The class of an error, which decides what to do about the error."""

    MISSING = "missing"
    """The object does not exist."""
    PAST_END = "past_end"
    """The range begins after the end of the object."""
    EXISTS = "exists"
    """The object was to be created, but it already exists."""
    SLOW_DOWN = "slow_down"
    """The store asks for fewer requests, or is not ready yet. All threads then pause their requests."""
    TRANSIENT = "transient"
    """The request may succeed if it is repeated."""
    ACCESS_LOST = "access_lost"
    """No request will succeed until a person renews the credentials or sets the clock."""
    PERMANENT = "permanent"
    """The request will never succeed for this object."""


_SLOW_DOWN = re.compile(
    r"slow.?down|throttl|too.?many.?requests|rate.?(limit|exceeded)|request.?limit|bandwidth.?limit"
    r"|throughput.?exceeded|busy|reduce.?your|not.?(yet.?)?(initiali[sz]ed|ready)|service.?unavailable",
    re.IGNORECASE,
)
_TRANSIENT = re.compile(
    r"internal.?error|time.?d?.?out|incomplete.?body|operation.?aborted|conditional.?request.?conflict"
    r"|prior.?request.?not.?complete|bad.?digest|content.?sha256.?mismatch|try.?again",
    re.IGNORECASE,
)
_ACCESS_LOST = re.compile(
    r"expired|token.?refresh.?required|invalid.?token|time.?too.?skewed|request.?in.?the.?future"
    r"|invalid.?access.?key|invalid.?client.?token|unrecognized.?client|signature.?does.?not.?match|auth.?failure",
    re.IGNORECASE,
)


def fault_of(status: int, code: str) -> Fault:
    """Classify the error in a response.

    Args:
        status: The HTTP status.
        code: The store's name for the error, such as `NoSuchKey`; the status as text if the response has none.
    """
    if _ACCESS_LOST.search(code):
        return Fault.ACCESS_LOST
    # Some stores throttle with status 400 or 403, and some report an error in a response with status 200.
    if status in (429, 503) or _SLOW_DOWN.search(code):
        return Fault.SLOW_DOWN
    if status == 501:
        # The store does not have the operation, or does not know a header.
        return Fault.PERMANENT
    if status >= 500 or status < 300 or status in (408, 409, 425) or _TRANSIENT.search(code):
        return Fault.TRANSIENT
    # Other codes with status 404, such as that of a missing bucket, do not mean that the object is missing.
    if code in ("NoSuchKey", "NotFound", "404", ""):
        return Fault.MISSING if status == 404 else Fault.PERMANENT
    return {412: Fault.EXISTS, 416: Fault.PAST_END}.get(status, Fault.PERMANENT)
