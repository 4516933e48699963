"""Images that move to another place after their corpus is indexed: the same run continues with them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.campaign.campaign import align
from mpa_ray.config import RunConfig, SourceConfig, StudentConfig, VllmEngineConfig
from mpa_ray.corpus.index import index_shards
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.source_root import MovedRoot, SourceRoot
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.phases import check_export
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.pipeline.training_data import fetched
from mpa_ray.records import Annotation, ImageRef, ParitySample
from mpa_ray.run.export_check import CheckedAnswer, ExportCheck
from mpa_ray.run.run import SOURCE_FILE, Run
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree
from tests.s3_server import client, s3_server_of_user
from tests.sources import (
    KINDS,
    Maker,
    as_files,
    as_parquet_bytes,
    as_tars,
    as_text,
)

NUM_IMAGES = 13
CONTENTS = [f"the content of image {number}".encode() for number in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        yield endpoint


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    return tmp_path / "old"


def configured(path: Path | str, root: Path, endpoint: str | None = None, **source: object) -> RunConfig:
    tree = scripted_tree(Path("unset"), root / "run")
    tree["source"] |= {"path": str(path), **source}
    return RunConfig.model_validate({**tree, "object_store": {"endpoint_url": endpoint}})


def indexed(path: Path | str, root: Path, endpoint: str | None = None, **source: object) -> RunContext[RunConfig]:
    context = RunContext.open(configured(path, root, endpoint, **source))
    index(context)
    return context


def continued(path: Path | str, root: Path, endpoint: str | None = None, **source: object) -> RunContext[RunConfig]:
    """The context of the next command, with another path."""
    context = RunContext.open(configured(path, root, endpoint, **source))
    context.begin(writes=["annotations"], reads=["corpus"])
    return context


def uris_of(run: Run) -> list[str]:
    return [ref.uri for ref in run.corpus.rows(run.manifest().shards)]


def annotate_all(run: Run, contents: list[bytes]) -> None:
    """Commit annotations that hold the digest of each image."""
    files = iter(contents)
    for shard in run.manifest().shards:
        rows = [
            Annotation(f"{ref.image_id}#0", ref.image_id, ref.uri, "kept", content_sha256=hashlib.sha256(c).hexdigest())
            for ref, c in zip(run.corpus.read(shard), files, strict=False)
        ]
        run.annotations.commit(shard, rows)


def upload_folder(endpoint: str, folder: Path, prefix: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            key = f"{prefix}/{file.relative_to(folder)}"
            client(endpoint).put_object(Bucket="bucket", Key=key, Body=file.read_bytes())


def fingerprints_of(run_dir: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run_dir / "fingerprints").iterdir()}


@pytest.mark.parametrize(("make", "kind"), KINDS, ids=[make.__name__ for make, _ in KINDS])
def test_every_kind_of_source_may_move_to_another_folder(make: Maker, kind: str, old: Path, tmp_path: Path) -> None:
    path = make(CONTENTS, old)
    before = indexed(path, tmp_path, kind=kind)
    expected, fingerprints = uris_of(before.run), fingerprints_of(tmp_path / "run")
    assert before.corpus_reader.read(expected) == CONTENTS
    old.rename(tmp_path / "new")
    after = continued(tmp_path / "new" / path.relative_to(old), tmp_path, kind=kind)
    assert after.corpus_reader.read(uris_of(after.run)) == CONTENTS
    assert uris_of(after.run) == expected
    index(after)
    assert fingerprints_of(tmp_path / "run").items() >= fingerprints.items()
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["source"]["path"].startswith(f"{tmp_path}/new")


@pytest.mark.parametrize("make", [as_files, as_text, as_parquet_bytes, as_tars])
def test_a_source_may_move_to_a_bucket_and_back(make: Maker, old: Path, tmp_path: Path, server: str) -> None:
    path, kind = make(CONTENTS, old), dict(KINDS)[make]
    prefix = f"{make.__name__}/of $%20me"
    before = indexed(path, tmp_path, server, kind=kind)
    upload_folder(server, old, prefix)
    shutil.rmtree(old)
    there = f"s3://bucket/{prefix}/{path.relative_to(old)}"
    after = continued(there, tmp_path, server, kind=kind)
    assert after.corpus_reader.read(uris_of(before.run)) == CONTENTS

    other_run = tmp_path / "other"
    at_bucket = indexed(there, other_run, server, kind=kind)
    assert at_bucket.corpus_reader.read(uris_of(at_bucket.run)) == CONTENTS
    (tmp_path / "copy").mkdir()
    make(CONTENTS, tmp_path / "copy")
    back = continued(tmp_path / "copy" / path.relative_to(old), other_run, server, kind=kind)
    assert back.corpus_reader.read(uris_of(back.run)) == CONTENTS
    assert all(uri.startswith("s3://bucket/") for uri in uris_of(back.run))


def test_single_files_and_embedded_images_may_move(old: Path, tmp_path: Path) -> None:
    as_tars(CONTENTS, old)
    as_parquet_bytes(CONTENTS, old)
    lines = [f"{n}\tdata:image/png;base64,{base64.b64encode(content).decode()}" for n, content in enumerate(CONTENTS)]
    (old / "list.tsv").write_text("\n".join(["id\timage", *lines]))
    (old / "one.png").write_bytes(CONTENTS[0])
    paths = [min(old.rglob("*.tar")), old / "00.parquet", old / "list.tsv", old / "one.png"]
    names = [path.relative_to(old) for path in paths]
    expected = []
    for name in names:
        context = indexed(old / name, tmp_path / f"run of {name.name}")
        expected.append(context.corpus_reader.read(uris_of(context.run)))
    assert [len(contents) for contents in expected] == [12, 12, NUM_IMAGES, 1]
    assert all(content in CONTENTS for contents in expected for content in contents)
    old.rename(tmp_path / "new")
    for name, contents in zip(names, expected, strict=True):
        context = continued(tmp_path / "new" / name, tmp_path / f"run of {name.name}")
        assert context.corpus_reader.read(uris_of(context.run)) == contents


def test_a_corpus_may_move_again_and_back(old: Path, tmp_path: Path) -> None:
    path = as_tars(CONTENTS, old)
    indexed(path, tmp_path)
    for name in ("second", "third", "old"):
        new = tmp_path / name
        next(folder for folder in (old, tmp_path / "second", tmp_path / "third") if folder.exists()).rename(new)
        context = continued(new / path.relative_to(old), tmp_path)
        assert context.corpus_reader.read(uris_of(context.run)) == CONTENTS
    assert context.moved_root is None


def test_a_relative_path_moves_with_the_working_directory(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_files(CONTENTS, old)
    monkeypatch.chdir(old)
    indexed("files", tmp_path)
    old.rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    context = continued("files/", tmp_path)
    assert context.corpus_reader.read(uris_of(context.run)) == CONTENTS
    # A report may be made in another folder, where there is nothing of this name.
    monkeypatch.chdir(tmp_path)
    assert RunContext.from_checked(configured("files", tmp_path)).moved_root is None


def test_names_that_are_not_utf8_move(old: Path, tmp_path: Path) -> None:
    for number, content in enumerate(CONTENTS):
        (old / os.fsdecode(b"caf\xe9 %d#bytes=0-1.png" % number)).write_bytes(content)
    expected = sorted(CONTENTS, key=lambda content: f"{CONTENTS.index(content)}#")
    before = indexed(old, tmp_path)
    assert before.corpus_reader.read(uris_of(before.run)) == expected
    old.rename(tmp_path / "né w")
    after = continued(tmp_path / "né w", tmp_path)
    assert after.corpus_reader.read(uris_of(after.run)) == expected


def test_files_outside_the_old_root_are_read_where_they_are(old: Path, tmp_path: Path) -> None:
    elsewhere = as_files(CONTENTS, tmp_path)
    inside = as_files(CONTENTS, old)
    absolute = [str(elsewhere / name) for name in sorted(os.listdir(elsewhere))]
    near = tmp_path / "older"
    shutil.copytree(elsewhere, near)
    names = sorted(os.listdir(inside))
    lines = [absolute[0], f"{near}/{names[1]}", f"../files/{names[2]}", *(f"./files/{name}" for name in names[3:])]
    (old / "list.txt").write_text("\n".join(lines))
    indexed(old / "list.txt", tmp_path, allow=["parent_folders"])
    shutil.copytree(old, tmp_path / "new")
    shutil.rmtree(inside)
    context = continued(tmp_path / "new/list.txt", tmp_path, allow=["parent_folders"])
    reader = context.corpus_reader
    assert reader.read(uris_of(context.run)) == CONTENTS
    is_moved = [reader.current_uri(uri) != uri for uri in uris_of(context.run)]
    assert is_moved == [False] * 3 + [True] * (NUM_IMAGES - 3)


def test_a_list_of_absolute_paths_may_move_alone(old: Path, tmp_path: Path) -> None:
    elsewhere = as_files(CONTENTS, tmp_path)
    lines = [str(elsewhere / name) for name in sorted(os.listdir(elsewhere))]
    (old / "list.txt").write_text("\n".join(lines))
    indexed(old / "list.txt", tmp_path)
    old.rename(tmp_path / "new")
    context = continued(tmp_path / "new/list.txt", tmp_path)
    assert context.corpus_reader.read(uris_of(context.run)) == CONTENTS
    (tmp_path / "new/list.txt").write_text("\n".join(reversed(lines)))
    with pytest.raises(ConfigError, match=r"its first image is \S+/012.png instead of \S+/000.png") as refused:
        continued(tmp_path / "new/list.txt", tmp_path)
    assert refused.value.field == "source.path"


def test_missing_images_are_refused_at_once(old: Path, tmp_path: Path) -> None:
    path = as_files(CONTENTS, old)
    indexed(path, tmp_path)
    new = Path(shutil.copytree(path, tmp_path / "new"))
    (new / "012.png").unlink()
    with pytest.raises(ConfigError) as refused:
        continued(new, tmp_path)
    message = str(refused.value)
    assert (
        f"source.path = {str(new)!r}: does not contain the images that were indexed at {path}: {new}/012.png" in message
    )
    assert "Copy all of them with their old names, set source.path to their location" in message
    (new / "012.png").write_bytes(CONTENTS[12] + b"!")
    with pytest.raises(ConfigError, match=r"012.png has 24 bytes instead of 23"):
        continued(new, tmp_path)
    (new / "012.png").write_bytes(CONTENTS[12])
    (new / "0.png").write_bytes(b"A new image in front of all.")
    continued(new, tmp_path)
    assert str(new) in (tmp_path / "run/run.json").read_text()


@pytest.mark.parametrize("make", [as_files, as_tars, as_parquet_bytes, as_text])
def test_other_images_of_the_same_size_are_refused_once_digests_are_known(
    make: Maker, old: Path, tmp_path: Path
) -> None:
    path = make(CONTENTS, old)
    annotate_all(indexed(path, tmp_path).run, CONTENTS)
    others = tmp_path / "others"
    others.mkdir()
    make([content.upper() for content in CONTENTS], others)
    with pytest.raises(ConfigError, match="has a different SHA-256"):
        continued(others / path.relative_to(old), tmp_path)
    same = tmp_path / "same"
    same.mkdir()
    make(CONTENTS, same)
    continued(same / path.relative_to(old), tmp_path)


def test_other_tars_are_refused_before_digests_are_known(old: Path, tmp_path: Path) -> None:
    path = as_tars(CONTENTS, old)
    indexed(path, tmp_path)
    others = tmp_path / "others"
    others.mkdir()
    as_tars([content * 300 for content in CONTENTS], others)
    with pytest.raises(ConfigError, match="its first image is"):
        continued(others / path.relative_to(old), tmp_path)


def test_an_entry_that_was_missing_before_does_not_matter(old: Path, tmp_path: Path) -> None:
    path = as_text(CONTENTS, old)
    (old / "files/000.png").unlink()
    indexed(path, tmp_path)
    old.rename(tmp_path / "new")
    continued(tmp_path / "new/list.txt", tmp_path)
    shutil.rmtree(tmp_path / "new/files")
    with pytest.raises(ConfigError, match=r"000.png cannot be read"):
        continued(tmp_path / "new/list.txt", tmp_path)


def test_other_names_below_the_root_are_another_source(old: Path, tmp_path: Path) -> None:
    path = as_files(CONTENTS, old)
    shutil.copytree(path, tmp_path / "new")
    indexed(f"{path}/*.png", tmp_path)
    continued(f"{tmp_path}/new/*.png", tmp_path)
    for other in (f"{tmp_path}/new/**/*.png", f"{path}/0*.png", tmp_path / "new"):
        with pytest.raises(ConfigError, match=r"path: was .*, now "):
            continued(other, tmp_path)


def test_synthetic_images_do_not_move(tmp_path: Path) -> None:
    indexed("synthetic://20", tmp_path)
    with pytest.raises(ConfigError, match="path: was 'synthetic://20', now 'synthetic://30'"):
        continued("synthetic://30", tmp_path)


def test_a_run_of_an_earlier_version_is_read_and_does_not_move(old: Path, tmp_path: Path) -> None:
    path = as_files(CONTENTS, old)
    shutil.copytree(path, tmp_path / "new")
    indexed(path, tmp_path)
    (tmp_path / "run" / SOURCE_FILE).unlink()
    context = continued(path, tmp_path)
    assert context.corpus_reader.read(uris_of(context.run)) == CONTENTS
    with pytest.raises(ConfigError, match=r"path: was .*, now .*'\. Undo the change, or give a new run_dir"):
        continued(tmp_path / "new", tmp_path)


def test_the_root_of_a_run_without_one_is_recorded_by_the_next_command(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_files(CONTENTS, old)
    monkeypatch.chdir(Path(path).parent)
    name = Path(path).name
    indexed(name, tmp_path)
    file = tmp_path / "run" / SOURCE_FILE
    recorded = file.read_bytes()
    file.unlink()
    with monkeypatch.context() as elsewhere:
        # The same relative path names another folder here, which is not where the images are.
        shutil.copytree(path, tmp_path / "elsewhere" / name)
        elsewhere.chdir(tmp_path / "elsewhere")
        index(RunContext.open(configured(name, tmp_path)))
        assert not file.exists()
    index(RunContext.open(configured(name, tmp_path)))
    assert file.read_bytes() == recorded
    new = shutil.copytree(path, tmp_path / "new")
    assert continued(new, tmp_path).corpus_reader.read(uris_of(Run.open(str(tmp_path / "run")))) == CONTENTS


def test_a_corpus_that_is_partly_indexed_does_not_move(old: Path, tmp_path: Path) -> None:
    path = as_files(CONTENTS, old)
    config = configured(path, tmp_path)
    context = RunContext.open(config)
    context.begin(writes=["corpus"])
    next(index_shards(config.source, context.run, Places(config.object_store)))
    new = shutil.copytree(path, tmp_path / "new")
    with pytest.raises(ConfigError) as refused:
        continued(new, tmp_path)
    assert str(refused.value) == (
        f"source.path = {str(new)!r}: differs from {path}, where indexing began. Images may be moved only after all "
        f"of them are indexed. Set it to {path} and run mpa-ray index first, or give a new run_dir."
    )
    index(RunContext.open(configured(f"{path}/", tmp_path)))
    assert continued(new, tmp_path).corpus_reader.read(uris_of(context.run)) == CONTENTS


def test_other_settings_of_the_source_still_count(old: Path, tmp_path: Path) -> None:
    path = as_files(CONTENTS, old)
    indexed(path, tmp_path)
    new = shutil.copytree(path, tmp_path / "new")
    with pytest.raises(ConfigError, match="limit: was None, now 3"):
        continued(new, tmp_path, limit=3)


def test_training_reads_moved_images_but_labelled_sets_where_they_are(old: Path, tmp_path: Path) -> None:
    path = as_files(CONTENTS, old)
    indexed(path, tmp_path)
    new = Path(shutil.copytree(path, tmp_path / "new"))
    for file in path.iterdir():
        file.write_bytes(b"labelled")
    config = configured(new, tmp_path)
    run, student = Run.open(config.run_dir), config.students[0]
    plan = plan_epoch(run, "students/small/parity", SampleSources(list, list), student.level)
    job = TrainingJob.of(run, config, student, TASKS["demo_world"], plan, "students/small/parity", {True: "a card"})
    digests = [hashlib.sha256(content).hexdigest() for content in CONTENTS]
    rows = [
        TrainingRow(ParitySample("a", "a", uri, "?", "b", "c", content_sha256=None if n % 2 else digest), 1)
        for n, (uri, digest) in enumerate(zip(uris_of(run), digests, strict=True))
    ]
    expected = [b"labelled" if n % 2 else content for n, content in enumerate(CONTENTS)]
    assert fetched([rows], job.reader).contents == [expected]


def test_an_exported_student_is_checked_with_the_moved_images(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_files(CONTENTS, old)
    indexed(path, tmp_path)
    old.rename(tmp_path / "new")
    context = RunContext.from_checked(configured(tmp_path / "new/files", tmp_path))
    student = StudentConfig(name="small", model="m", engine=VllmEngineConfig())
    first = context.run.corpus.read("000000")[0]
    folder = context.run.training_dir("small", "parity")
    ExportCheck((CheckedAnswer("a", first.image_id, first.uri, "?", "b"),)).write(context.run, folder)
    read = []

    def run_missing(_: Run, work: Pass[Any], *__: object) -> None:
        read.extend(work.reader.read([row.uri for row in work.source.read_commit("000000")[1]]))
        raise RunError("read")

    monkeypatch.setattr(check_export, "run_missing", run_missing)
    with pytest.raises(RunError, match="read"):
        check_export.check_export(context, student, "parity", nullcontext)
    assert read == CONTENTS[:1]


def test_align_refuses_missing_images_before_anything_starts(old: Path, tmp_path: Path) -> None:
    indexed(as_files(CONTENTS, old), tmp_path)
    new = as_files(CONTENTS, tmp_path)
    (new / "000.png").unlink()
    config = configured(new, tmp_path)
    student = config.students[0].model_copy(update={"model": "bundled:demo/models/student"})
    with pytest.raises(ConfigError, match="does not contain the images that were indexed at"):
        align(config.model_copy(update={"students": (student,)}))


@pytest.mark.parametrize(
    ("old_root", "new_root", "uri", "moved"),
    [
        ("/data", "/mnt", "/data/a/b.png", "/mnt/a/b.png"),
        ("/data", "/mnt", "/data2/b.png", "/data2/b.png"),
        ("/data", "/mnt", "/data", "/data"),
        ("/data", "/mnt", "/data/../etc/passwd", "/data/../etc/passwd"),
        ("/data", "/mnt", "s3://data/b.png", "s3://data/b.png"),
        ("/data", "/mnt", "file:///data/%61.png", "/mnt/a.png"),
        ("/data", "/data/sub", "/data/a.png", "/data/sub/a.png"),
        ("/", "s3://b", "/a.png", "s3://b/a.png"),
        ("/data", "/", "/data/a.png", "/a.png"),
        ("/data", "s3://b/p", "/data/.//x/./a.png", "s3://b/p/x/a.png"),
        ("s3://b/p", "/mnt", "s3://b/p/../../etc/passwd", "s3://b/p/../../etc/passwd"),
        ("s3://b", "gs://c/d", "s3://b/a//b.png", "gs://c/d/a//b.png"),
        ("s3://b/p", "https://host/q", "s3://b/p/a.png", "https://host/q/a.png"),
        ("s3://b/p", "s3://b/q", "s3://b/pq/a.png", "s3://b/pq/a.png"),
    ],
)
def test_a_uri_is_mapped_only_below_the_old_root(old_root: str, new_root: str, uri: str, moved: str) -> None:
    root = MovedRoot(old_root, new_root)
    assert root.uri(uri) == moved
    assert root.moves(uri) == (moved != uri)


@pytest.mark.parametrize(
    ("path", "kind", "root", "names"),
    [
        ("s3://b/photos/", "auto", "s3://b/photos", ""),
        ("s3://b", "auto", "s3://b", ""),
        ("s3://b/photos/**/*.jpg", "auto", "s3://b/photos", "**/*.jpg"),
        ("s3://b/list.TXT", "auto", "s3://b", "list.TXT"),
        ("s3://b/x/data.parquet", "auto", "s3://b/x", "data.parquet"),
        ("s3://b/x/data.parquet", "images", "s3://b/x/data.parquet", ""),
        ("s3://b/x/entries", "list", "s3://b/x", "entries"),
        ("s3://b/x/0.jpg", "auto", "s3://b/x", "0.jpg"),
        ("gs://bucket/x/0.tar", "webdataset", "gs://bucket/x", "0.tar"),
        ("https://host/x/list.csv", "auto", "https://host/x", "list.csv"),
        ("/*.jpg", "auto", "/", "*.jpg"),
        ("/list.txt", "auto", "/", "list.txt"),
        ("synthetic://100", "auto", "", "synthetic://100"),
    ],
)
def test_a_path_is_divided_into_root_and_names(path: str, kind: str, root: str, names: str) -> None:
    assert SourceRoot.of(SourceConfig(path=path, kind=kind)) == SourceRoot(path, root, names)


def test_a_relative_path_has_an_absolute_root(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_files(CONTENTS, old)
    monkeypatch.chdir(old)
    for path, root, names in (("files", "/files", ""), ("files/*.png", "/files", "*.png"), ("*/*.png", "", "*/*.png")):
        assert SourceRoot.of(SourceConfig(path=path)) == SourceRoot(path, f"{old}{root}", names)


def test_a_reader_keeps_the_order_of_mixed_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    refs = [ImageRef(str(n), str(tmp_path / "ab"[n % 2] / f"{n}.png")) for n in range(6)]
    config = configured(tmp_path, tmp_path / "root")
    reader = RunContext.from_checked(config).image_reader
    (tmp_path / "c").mkdir()
    for n, ref in enumerate(refs):
        Path(ref.uri.replace("/a/", "/c/")).write_bytes(b"%d" % n)
    moved = replace(reader, moved=MovedRoot(str(tmp_path / "a"), str(tmp_path / "c")))
    assert moved.read([ref.uri for ref in refs]) == [b"%d" % n for n in range(6)]
