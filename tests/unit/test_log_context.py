"""What log records carry, whoever writes them."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from mpa_ray.observability.log_context import about, names_of


def names(record: logging.LogRecord) -> dict[str, str]:
    return {name: record.__dict__[name] for name in ("run", "phase", "student", "shard") if name in record.__dict__}


def test_records_carry_the_names_of_the_work_that_they_come_from(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    other = logging.getLogger("some.library")

    async def visit(shard: str) -> None:
        with about(shard=shard):
            await asyncio.sleep(0.001)
            other.info("seen")

    async def both() -> None:
        await asyncio.gather(visit("000000"), visit("000001"))

    with about(run="/run", **names_of("identify:small+2")):
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
    ("label", "expected"),
    [
        ("annotate", {"phase": "annotate"}),
        ("annotate:teacher", {"phase": "annotate", "student": "teacher"}),
        ("level small random", {"phase": "level", "student": "small random"}),
    ],
)
def test_names_of_steps_and_pools(label: str, expected: dict[str, str]) -> None:
    assert names_of(label) == expected
