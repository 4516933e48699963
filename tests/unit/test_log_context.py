"""What log records carry, whoever writes them."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from mpa_ray.observability.log_context import log_context
from mpa_ray.run.phase_record import PhaseKey


def names(record: logging.LogRecord) -> dict[str, str]:
    return {name: record.__dict__[name] for name in ("run", "phase", "student", "shard") if name in record.__dict__}


def test_records_carry_the_names_of_the_work_that_they_come_from(caplog: pytest.LogCaptureFixture) -> None:
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
        elsewhere = threading.Thread(target=other.info, args=("of another step",))
        elsewhere.start()
        elsewhere.join()
    other.info("afterwards")
    common = {"run": "/run", "phase": "identify", "student": "small+2"}
    assert [names(record) for record in caplog.records] == [
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
def test_phases_name_themselves_in_records(key: PhaseKey, expected: dict[str, str]) -> None:
    assert key.log_fields == expected
