"""A run directory inside the source is refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import mpa_ray
from mpa_ray.config import RunConfig, SourceConfig
from mpa_ray.corpus.source_root import SourceRoot
from mpa_ray.errors import ConfigError
from mpa_ray.run.run import Run
from mpa_ray.storage.open import open_storage
from tests.conftest import scripted_tree, write_images


def _lists(source: object, run_dir: object) -> bool:
    return SourceRoot.of(SourceConfig(path=str(source))).lists(str(run_dir))


def test_a_run_below_the_source_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images", 1)
    assert _lists(images, images)
    assert _lists(images, images / "runs/first")
    assert _lists(f"{images}/", images / "run")
    assert not _lists(images, tmp_path / "images-run")
    assert not _lists(images / "deeper", images / "run")
    monkeypatch.chdir(images)
    assert _lists(".", "run")
    assert _lists(images, "run")
    assert not _lists(images, "../run")


def test_symbolic_links_are_resolved(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    (tmp_path / "link").symlink_to(images)
    (images / "elsewhere").symlink_to(tmp_path / "disk")
    assert _lists(images, tmp_path / "link/run")
    assert _lists(tmp_path / "link", images / "run")
    # The listing follows the link, so it reaches the run under both of its names.
    assert _lists(images, images / "elsewhere/run")


def test_a_glob_lists_a_run_only_if_it_matches_files_of_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    assert _lists(images / "**/*.parquet", images / "run")
    assert _lists(images / "*/*/*/*", images / "run")
    assert not _lists(images / "*.parquet", images / "run")
    assert not _lists(images / "train/*.png", images / "run")
    assert not _lists(images / "**/*.png", images / "run")


def test_a_single_file_lists_no_run(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n")
    assert not _lists(tmp_path / "list.txt", tmp_path / "run")
    assert not _lists("synthetic://10", tmp_path / "run")


def test_prefixes_in_a_bucket_are_compared() -> None:
    assert _lists("s3://bucket/images", "s3://bucket/images/run")
    assert _lists("s3://bucket/images/", "s3://bucket/images")
    assert _lists("s3://bucket", "s3://bucket/run")
    assert not _lists("s3://bucket/images", "s3://bucket/images-run")
    assert not _lists("s3://bucket/images", "s3://other/images/run")
    assert not _lists("s3://bucket/images", "/images/run")
    assert _lists("s3://bucket/**/*.parquet", "s3://bucket/run")


@pytest.mark.parametrize("command", ["align", "index"])
def test_nothing_is_written(command: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    config = RunConfig.model_validate(scripted_tree(images, images / "run"))
    with pytest.raises(ConfigError, match=r"run_dir = .*is inside the source .*Give a run_dir outside of the source\."):
        mpa_ray.align(config) if command == "align" else mpa_ray.run_phase(config, command)  # type: ignore[arg-type]
    assert not (images / "run").exists()


@pytest.mark.parametrize("command", ["index", "a later index"])
def test_a_run_behind_a_link_in_the_source_is_left_out(command: str, tmp_path: Path) -> None:
    """The check of `run_dir` does not follow the links inside the source, since that would list the whole source."""
    images, disk = write_images(tmp_path / "images", 2), tmp_path / "disk"
    (disk / "runs").mkdir(parents=True)
    (images / "disk").symlink_to(disk)
    config = RunConfig.model_validate(scripted_tree(images, disk / "runs/first"))
    config = config.model_copy(update={"source": config.source.model_copy(update={"extensions": ()})})
    mpa_ray.run_phase(config, "index")
    if command == "a later index":
        config = config.model_copy(update={"run_dir": str(tmp_path / "other")})
        mpa_ray.run_phase(config, "index")
    manifest = Run(open_storage(config.run_dir)).manifest()
    assert (manifest.num_images, manifest.left_out) == (2, {"folders of runs (with a run.json)": 1})


@pytest.mark.parametrize("content", ['{"config": {}}', "[]", "{", None])
def test_a_folder_with_another_run_json_is_listed(content: str | None, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    write_images(images / "other", 1)
    if content is None:
        os.mkfifo(images / "other/run.json")
    else:
        (images / "other/run.json").write_text(content)
    config = RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))
    mpa_ray.run_phase(config, "index")
    assert Run(open_storage(config.run_dir)).manifest().num_images == 2
