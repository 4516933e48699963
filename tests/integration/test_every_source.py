"""All kinds of sources with the same 200 images give the same D_PA."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_ray.config import RunConfig
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree, write_images
from tests.sources import KINDS, Maker, as_files, as_json_lines, as_parquet_bytes, as_tars

pytestmark = pytest.mark.usefixtures("local_ray")
NUM_IMAGES = 200
ALWAYS = (as_files, as_json_lines, as_parquet_bytes, as_tars)
"""`make test` tries these; its tests without Ray read all kinds."""

Pair = tuple[str | None, str | None, str | None, str]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES, seed=5)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def first_pairs() -> list[Pair]:
    """D_PA by content of the first kind of source; empty before that is known."""
    return []


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(make, kind, id=make.__name__, marks=() if make in ALWAYS else pytest.mark.long)
        for make, kind in KINDS
    ],
)
def test_every_kind_of_source_gives_the_same_annotations(
    make: Maker, kind: str, contents: list[bytes], first_pairs: list[Pair], tmp_path: Path
) -> None:
    tree = scripted_tree(make(contents, tmp_path), tmp_path / "run", inconsistent_rate=0.2, unparsable_rate=0.1)
    tree["source"] |= {"shard_size": 32, "kind": kind}
    config = RunConfig.model_validate(tree)
    index(RunContext.open(config))
    annotate(RunContext.open(config))
    run = Run.open(config.run_dir)
    rows = list(run.annotations.rows(run.manifest().shards))
    assert len({row.annotation_id for row in rows}) == NUM_IMAGES
    pairs = sorted(((r.content_sha256, r.question, r.answer, r.state) for r in rows), key=str)
    first_pairs[:] = first_pairs or pairs
    assert pairs == first_pairs
    assert sum(state == "kept" for *_, state in pairs) > 0.8 * NUM_IMAGES
    assert audit(run).num_images == NUM_IMAGES
