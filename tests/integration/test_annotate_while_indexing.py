"""Concurrent indexing and annotation: engines start and work while the source is still being listed."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from mpa_ray.config import ObjectStoreConfig, RunConfig
from mpa_ray.corpus.index import index_shards
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.phases.annotate import annotate, index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree, write_images

pytestmark = pytest.mark.usefixtures("local_ray")


def rows_of(run: Run) -> dict[str, tuple[str, str | None, str | None]]:
    rows = run.annotations.rows(run.manifest().shards)
    return {row.annotation_id: (row.state, row.reason, row.question) for row in rows}


def with_duplicates(folder: Path) -> Path:
    write_images(folder, 40)
    for number in range(0, 40, 3):
        (folder / f"{number:03d}-copy.png").write_bytes((folder / f"{number:03d}.png").read_bytes())
    return folder


def test_the_annotations_equal_those_of_separate_phases_also_after_a_kill(tmp_path: Path) -> None:
    folder = with_duplicates(tmp_path / "images")
    separate, concurrent, killed = (
        RunConfig.model_validate(scripted_tree(folder, tmp_path / name))
        for name in ("separate", "concurrent", "killed")
    )
    index(RunContext.open(separate))
    annotate(RunContext.open(separate))
    index_and_annotate(RunContext.open(concurrent))
    expected = rows_of(Run.open(separate.run_dir))
    assert sum(reason == "duplicate_of" for _, reason, _ in expected.values()) == 14
    assert rows_of(Run.open(concurrent.run_dir)) == expected

    # As if indexing was killed after the fourth shard, and annotation after the second.
    context = RunContext.open(killed)
    context.begin(writes=["corpus", "annotations"])
    run = context.run
    list(islice(index_shards(killed.source, run, Places(ObjectStoreConfig())), 4))
    for shard in ("000000", "000001"):
        run.annotations.commit(shard, Run.open(separate.run_dir).annotations.read(shard))
    index_and_annotate(RunContext.open(killed))
    assert rows_of(run) == expected
    identify(RunContext.open(killed))
    assert audit(run).problems == []


def test_an_error_in_the_source_ends_the_pass_and_keeps_committed_shards(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 20)
    entries = [{"image": f"{n:03d}.png", "id": f"{n % 18}"} for n in range(20)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    tree = scripted_tree(folder, tmp_path / "run")
    tree["source"] |= {"path": str(folder / "list.jsonl"), "id_column": "id", "shard_size": 4}
    config = RunConfig.model_validate(tree)
    with pytest.raises(ConfigError, match=r"'0' occurs twice"):
        index_and_annotate(RunContext.open(config))
    run = Run.open(config.run_dir)
    assert not run.storage.exists("corpus/manifest.json")
    assert [run.annotations.is_committed(f"{n:06d}") for n in range(5)] == [True] * 4 + [False]
