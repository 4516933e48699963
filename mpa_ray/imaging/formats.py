"""HEIC files: their name endings, the extra with their decoder, and whether the decoder is installed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

HEIC_ENDINGS = (".heic", ".heif", ".hif")
HEIC_EXTRA = "mpa-ray[heic]"


@cache
def reads_heic() -> bool:
    """Whether the decoder of HEIC files is installed."""
    return find_spec("pi_heif") is not None
