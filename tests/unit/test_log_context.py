"""The fields that log records carry, no matter which library logs them."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from mpa_ray.observability.log_context import log_context
from mpa_ray.run.phase_record import PhaseKey


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    return {name: record.__dict__[name] for name in ("run", "phase", "student", "shard") if name in record.__dict__}


def test_records_carry_the_fields_of_the_block_that_they_come_from(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    other = logging.getLogger("some.library")

    async def visit(shard: str) -> None:
        with log_context(shard=shard):
            await asyncio.sleep(0.001)
            other.info("seen")

    async def both() -> None:
        await asyncio.gather(visit("000000"), visit("000001"))

    with log_context(run="/run", phase="identify", student="small+2"):
        asyncio.run(both())
        elsewhere = threading.Thread(target=other.info, args=("in another thread",))
        elsewhere.start()
        elsewhere.join()
    other.info("afterwards")
    common = {"run": "/run", "phase": "identify", "student": "small+2"}
    assert [fields_of(record) for record in caplog.records] == [
        {**common, "shard": "000000"},
        {**common, "shard": "000001"},
        {},
        {},
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (PhaseKey("annotate"), {"phase": "annotate"}),
        (PhaseKey("identify", "small"), {"phase": "identify", "student": "small"}),
        (PhaseKey("level", "small", "random"), {"phase": "level", "student": "small", "arm": "random"}),
    ],
)
def test_a_phase_has_log_fields(key: PhaseKey, expected: dict[str, str]) -> None:
    assert key.log_fields == expected
