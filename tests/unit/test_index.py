"""Indexing lists files in a fixed order, accounts for every file, and has no image twice after any interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.campaign.campaign import align
from mpa_ray.config import ObjectStoreConfig, RunConfig, SourceConfig
from mpa_ray.corpus.index import Selection, check_source, index_source
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.phases.annotate import annotate, index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.pipeline.run_pass import Outstanding
from mpa_ray.records import ImageRef, Reason
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.run import Run

FILES = Places(ObjectStoreConfig())


def folder_with(root: Path, *names: str) -> SourceConfig:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read here")
    return SourceConfig(path=str(root), shard_size=2)


def ids(run: Run) -> list[str]:
    return [ref.image_id for ref in run.corpus.rows(run.manifest().shards)]


def test_images_are_sorted_by_their_paths(tmp_path: Path) -> None:
    source = folder_with(tmp_path, "b.png", "a/z.JPG", "a.png", "a-1/c.png", "notes.txt", "a/y.webp")
    names = [ref.image_id for ref in Selection(source, FILES).images()]
    assert names == sorted(names, key=str.encode) == ["a-1/c.png", "a.png", "a/y.webp", "a/z.JPG", "b.png"]


def test_a_killed_index_continues_and_repeats_no_image(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "images", *(f"{c}.png" for c in "bcdefgh"))
    run = Run.open(str(tmp_path / "run"))
    run.corpus.commit("000000", list(Selection(source, FILES).images())[:2])
    # Between the attempts, one file is added and one of the first shard is deleted.
    folder_with(tmp_path / "images", "a.png", "i.png")
    (tmp_path / "images/b.png").unlink()
    manifest = index_source(source, run, FILES)
    assert ids(run) == [f"{c}.png" for c in "bcdefghi"]
    assert manifest.num_images == 8


def test_a_shard_that_another_driver_committed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_with(tmp_path / "images", *(f"{c}.png" for c in "abcde"))
    run = Run.open(str(tmp_path / "run"))
    refs = list(Selection(source, FILES).images())
    commit = type(run.corpus).commit

    def raced(dataset: ShardedDataset[ImageRef], shard: str, rows: list[ImageRef], *args: Any, **options: Any) -> bool:
        if shard == "000000":
            commit(dataset, shard, refs[:1])
        return commit(dataset, shard, rows, *args, **options)

    monkeypatch.setattr(type(run.corpus), "commit", raced)
    index_source(source, run, FILES)
    assert ids(run) == [f"{c}.png" for c in "abcde"]


def test_a_limit_holds_across_attempts(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "images", *(f"{c}.png" for c in "abcdefg")).model_copy(update={"limit": 5})
    run = Run.open(str(tmp_path / "run"))
    assert index_source(source, run, FILES).num_images == 5
    assert ids(run) == [f"{c}.png" for c in "abcde"]


@pytest.mark.parametrize(
    ("settings", "field", "counts"),
    [
        ({"fraction": 1e-9}, "source.fraction", "(left out: source.fraction: 3)"),
        ({"min_bytes": 100}, "source.min_bytes", "(left out: source.min_bytes: 3)"),
        ({"max_bytes": 5}, "source.max_bytes", "(left out: source.max_bytes: 3)"),
        (
            {"min_bytes": 14, "fraction": 1e-9},
            "source.min_bytes",
            "(left out: source.min_bytes: 2, source.fraction: 1)",
        ),
    ],
)
def test_filters_that_leave_no_image_are_named(
    tmp_path: Path, settings: dict[str, float], field: str, counts: str
) -> None:
    """In earlier versions, the manifest was empty, and annotation divided by its number of shards."""
    folder_with(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "images/c.png").write_bytes(b"one more byte.")
    source = SourceConfig.model_validate({"path": str(tmp_path / "images"), **settings})
    run = Run.open(str(tmp_path / "run"))
    with pytest.raises(ConfigError) as checked:
        check_source(source, FILES)
    with pytest.raises(ConfigError) as indexed:
        index_source(source, run, FILES)
    assert str(checked.value) == str(indexed.value)
    assert checked.value.field == field
    assert f"leaves none of the 3 images {counts}" in str(checked.value)
    assert not run.is_indexed()


def test_the_check_lists_a_source_only_to_the_first_image_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        num_listed = 0

        def images(self, _: ImageRef | None = None) -> Iterator[ImageRef]:
            for number in count():
                self.num_listed = number + 1
                yield ImageRef(f"{number}.png", f"s3://bucket/{number}.png", 10)

    source = Endless()
    monkeypatch.setattr("mpa_ray.corpus.index.open_source", lambda *_: source)
    config = SourceConfig(path="anywhere", fraction=0.01)
    check_source(config, FILES)
    listed = source.num_listed
    assert 1 < listed < 10_000
    assert next(Selection(config, FILES).images()).image_id == f"{listed - 1}.png"


@pytest.mark.parametrize(
    "phase",
    [
        lambda config: index(RunContext.open(config)),
        lambda config: annotate(RunContext.open(config)),
        lambda config: index_and_annotate(RunContext.open(config)),
        align,
    ],
    ids=["index", "annotate", "index_and_annotate", "align"],
)
def test_an_empty_corpus_is_refused_before_anything_starts(
    phase: Callable[[RunConfig], None], scripted_config: RunConfig
) -> None:
    source = scripted_config.source.model_copy(update={"fraction": 1e-9})
    with pytest.raises(ConfigError, match=r"source\.fraction = 1e-09: leaves none of the 60 images"):
        phase(scripted_config.model_copy(update={"source": source}))
    assert not Path(scripted_config.run_dir).exists()


def test_an_empty_manifest_has_nothing_outstanding(tmp_path: Path) -> None:
    assert Outstanding.of(Run.open(str(tmp_path)).annotations, Manifest(0, 0)) == Outstanding()


def test_odd_names_and_links_are_accounted_for(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "images", "a #1?.png", "b\nc.png", "d/e.png")
    with open(os.fsencode(tmp_path / "images") + b"/caf\xe9.png", "wb") as file:
        file.write(b"not UTF-8")
    (tmp_path / r"images/caf\xe9.png").write_bytes(b"an escape")
    (tmp_path / "images/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f.png").write_bytes(b"linked")
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere")
    refs = {ref.image_id: ref for ref in Selection(source, FILES).images()}
    assert sorted(refs) == [
        "a #1?.png",
        "b\nc.png",
        r"caf\\xe9.png",
        r"caf\xe9.png",
        "d/e.png",
        "gone.png",
        "link/f.png",
    ]
    contents = dict(zip(refs, Reader(ObjectStoreConfig()).read([ref.uri for ref in refs.values()]), strict=True))
    assert contents[r"caf\xe9.png"] == b"not UTF-8"
    assert contents["link/f.png"] == b"linked"
    assert contents["gone.png"] == ImageProblem(Reason.UNREADABLE, "FileNotFoundError: No such file or directory")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        next(Selection(SourceConfig(path=str(tmp_path / "no")), FILES).images())
