"""Hostile records in every kind of source, as `make bench-hostile` has them: none is lost or duplicated."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import cast

import pytest

from benchmarks.hostile import Done, SourceResult, run_refusals, run_source
from benchmarks.hostile_records import HostileSource, Record
from benchmarks.hostile_recount import Recount
from benchmarks.hostile_sources import MAKERS, llava
from mpa_ray import load_config, run_phase
from mpa_ray.api.phases import Phase
from mpa_ray.cli import main
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run

NUM_RECORDS = 500
SEED = 0
NUM_CONCURRENT = 3
"""The number of concurrent runs: most of a run's time is the start of processes."""


def run_in_thread(words: Sequence[str]) -> Done:
    """Do what a command does, in a thread of this process, whose Ray all runs share. Errors are raised."""
    if words[0] == "audit":
        return Done(0, json.dumps(audit(Run.open(words[1])).to_json()), "")
    run_phase(load_config(words[2]), cast(Phase, words[0]))
    return Done(0, "", "")


def run_command(words: Sequence[str]) -> Done:
    """Run a command in this process."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        code = main([*words])
    return Done(code, output.getvalue(), errors.getvalue())


def made(name: str, folder: Path) -> HostileSource:
    make, share = next((make, share) for make, share in MAKERS if make.__name__ == name)
    root = folder / "source [1] #é ~%2F"
    root.mkdir(parents=True)
    return make(root, round(share * NUM_RECORDS), random.Random(f"{SEED} {name}"))


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_no_hostile_record_is_lost_or_doubled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sources = {make.__name__: made(make.__name__, tmp_path / make.__name__) for make, _ in MAKERS}

    def run(name: str) -> SourceResult:
        return run_source(sources[name], tmp_path / name, shard_size=32, run_command=run_in_thread)

    with ThreadPoolExecutor(NUM_CONCURRENT) as threads:
        results = dict(zip(sources, threads.map(run, sources), strict=True))
    assert {name: result.problems for name, result in results.items() if result.problems} == {}
    for name, result in results.items():
        assert result.num_rows + sum(result.left_out.values()) == sources[name].num_records
    assert "Traceback" not in "".join(capfd.readouterr())

    # The recount notices what is lost, duplicated or changed.
    name = llava.__name__
    source, run_dir = sources[name], next((tmp_path / name).glob("run *"))
    assert Recount(source, run_dir).problems == []
    lost, doubled = Record("llava.json/1000000"), source.records.pop()
    changed = source.records[0]
    source.records[0] = Record(changed.key, frozenset({"too_few_bytes"}), b"others")
    source.records.append(lost)
    problems = "\n".join(Recount(source, run_dir).problems)
    for words in (f"1 missing: '{lost.key}'", f"1 too many: '{doubled.key}'", f"reason of '{changed.key}'"):
        assert words in problems


def test_sources_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path) -> None:
    assert run_refusals(tmp_path, run_command) == {}
