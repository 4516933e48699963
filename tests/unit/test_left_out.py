"""Every file of a source is either an image of the corpus or counted, with its ending or a reason."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from mpa_ray.config import BenchmarkConfig, ObjectStoreConfig, RunConfig, SourceConfig
from mpa_ray.corpus.index import Selection, index_shards, index_source
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources import images
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import question_files
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.records import ImageRef
from mpa_ray.report.status import status
from mpa_ray.run.left_out_counts import MAX_LABELS, OTHER, add_left_out, left_out_in_words
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree

PLACES = Places(ObjectStoreConfig())


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    return root


def listed(path: Path, **settings: object) -> tuple[list[str], dict[str, int]]:
    """The ids of the images, and the counts of what is left out."""
    listing = list(Selection(SourceConfig.model_validate({"path": str(path), **settings}), PLACES).listing())
    ids = [item.image_id for item in listing if isinstance(item, ImageRef)]
    return ids, dict(Counter(item.label for item in listing if isinstance(item, LeftOut)))


def test_a_disk_that_a_mac_wrote(tmp_path: Path) -> None:
    write(tmp_path, *(name for n in range(20) for name in (f"{n}.png", f"._{n}.png")), ".DS_Store", "__MACOSX/1.png")
    ids, left_out = listed(tmp_path)
    assert len(ids) == 20
    assert left_out == {"._* (AppleDouble)": 20, ".* (hidden)": 1, "__MACOSX (system folder)": 1}


def test_endings_of_phones_and_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    write(tmp_path, "0.jpg", "1.jfif", "2.jpe", "3.JPG", "4.avif", "5.HEIC", "6", "7.jp2", "8.jpg~", "9.mov", "9.MOV")
    ids, left_out = listed(tmp_path)
    assert ids == ["0.jpg", "1.jfif", "2.jpe", "3.JPG", "4.avif", "7.jp2"]
    assert left_out == {".heic (needs mpa-ray[heic])": 1, "no ending": 1, "other endings": 1, ".mov": 2}


def test_heic_files_are_images_where_their_decoder_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "0.jpg", "1.heic", "2.HIF")
    monkeypatch.setattr(images, "reads_heic", lambda: True)
    assert listed(tmp_path) == (["0.jpg", "1.heic", "2.HIF"], {})
    assert listed(tmp_path, extensions=["heic"]) == (["1.heic"], {".jpg": 1, ".hif": 1})
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    message = r"source\.extensions = 'heic': needs the package pi-heif.*Run pip install pi-heif"
    with pytest.raises(ConfigError, match=message):
        listed(tmp_path, extensions=["jpg", "heic"])


@pytest.mark.parametrize("folder", ["@eaDir", ".Trash-1000", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN"])
def test_folders_of_systems_are_left_out_unless_the_user_wants_them(folder: str, tmp_path: Path) -> None:
    write(tmp_path, "a.png", f"deep/{folder}/b.png")
    ids, left_out = listed(tmp_path)
    assert (ids, sum(left_out.values())) == (["a.png"], 1)
    assert listed(tmp_path, include_hidden=True) == (["a.png", f"deep/{folder}/b.png"], {})


@pytest.mark.parametrize(
    ("exclude", "names"),
    [
        (["thumbs"], ["a.png", "x/a_small.png", "x/y/b.png"]),
        (["*_small.*"], ["a.png", "thumbs/t.png", "x/y/b.png"]),
        (["x/*/b.png"], ["a.png", "thumbs/t.png", "x/a_small.png"]),
        (["x/y/"], ["a.png", "thumbs/t.png", "x/a_small.png"]),
        (["x/**"], ["a.png", "thumbs/t.png"]),
        (["y/b.png"], ["a.png", "thumbs/t.png", "x/a_small.png", "x/y/b.png"]),
        (["[at]*"], ["x/y/b.png"]),
    ],
)
def test_the_user_excludes_names_and_paths(exclude: list[str], names: list[str], tmp_path: Path) -> None:
    write(tmp_path, "a.png", "thumbs/t.png", "x/a_small.png", "x/y/b.png")
    ids, left_out = listed(tmp_path, exclude=exclude)
    assert ids == names
    assert left_out == ({"excluded (source.exclude)": 4 - len(names)} if len(names) < 4 else {})


def test_what_cannot_be_read_is_counted_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In earlier versions, one folder without permission ended the listing, and pipes were skipped silently."""
    write(tmp_path, "a.png", "locked/b.png", "z.png")
    os.mkfifo(tmp_path / "pipe.png")
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    ids, left_out = listed(tmp_path)
    assert ids == ["a.png", "z.png"]
    assert left_out == {"unreadable folders (Permission denied)": 1, "pipes, sockets and devices": 1}


def test_a_file_that_vanishes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.png", "b.png", "c.png")

    class Vanished:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self._entry = entry.name, entry.path, entry

        def is_dir(self) -> bool:
            return False

        def is_symlink(self) -> bool:
            return False

        def stat(self) -> os.stat_result:
            if self.name == "b.png":
                raise FileNotFoundError(2, "No such file or directory")
            return self._entry.stat()

    class Scan:
        def __init__(self, path: Path) -> None:
            self._entries = [Vanished(entry) for entry in sorted(scandir(path), key=lambda entry: entry.name)]

        def __enter__(self) -> list[Vanished]:
            return self._entries

        def __exit__(self, *_: object) -> None:
            return

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Scan)
    assert listed(tmp_path) == (["a.png", "c.png"], {"unreadable (No such file or directory)": 1})


def test_links_in_circles_end(tmp_path: Path) -> None:
    """In earlier versions, a link to itself ended the listing, and folders with links to each other had n! paths."""
    names = [f"f{n}" for n in range(9)]
    write(tmp_path, *(f"{name}/1.png" for name in names))
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for name in names:
        for other in names:
            if name != other:
                (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    ids, left_out = listed(tmp_path)
    assert {f"{name}/1.png" for name in names} <= set(ids)
    assert "self.png" in ids
    assert len(ids) < 3 * len(names)
    assert left_out["linked folders (listed elsewhere)"] > 0


def test_the_root_must_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(_: str | Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ConfigError, match=r"cannot be listed \(Permission denied\)"):
        listed(tmp_path)


def test_an_empty_source_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    write(tmp_path / "images", "a.heic", "b.heic", "._c.png")
    config = SourceConfig(path=str(tmp_path / "images"))
    with pytest.raises(ConfigError, match=r"left out 3 files: \.heic 2 \(needs mpa-ray\[heic\]\), \._\* 1 \(AppleDoub"):
        index_source(config, Run.open(str(tmp_path / "run")), PLACES)


def test_benchmarks_leave_hidden_files_out(tmp_path: Path) -> None:
    """In earlier versions, `._questions.json` was read as a file of questions."""
    write(tmp_path, "questions.json", "._questions.json")
    spec = BenchmarkConfig(path=str(tmp_path))
    assert [file.name for file in question_files(spec, PLACES)] == ["questions.json"]


def source_with_litter(tmp_path: Path, **settings: object) -> SourceConfig:
    names = [name for n in range(9) for name in (f"{n}.heic", f"{n}.png", f"{n}.txt")]
    write(tmp_path / "images", *names, "last")
    (tmp_path / "images/5.png").write_bytes(b"1")
    values = {"path": str(tmp_path / "images"), "shard_size": 2, "min_bytes": 2, **settings}
    return SourceConfig.model_validate(values)


COUNTS = {".heic (needs mpa-ray[heic])": 9, ".txt": 9, "no ending": 1, "smaller than source.min_bytes": 1}


@pytest.mark.parametrize("num_shards_before", [0, 1, 2, 3, 4])
def test_counts_are_exact_after_any_interruption(
    num_shards_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    config, run = source_with_litter(tmp_path), Run.open(str(tmp_path / "run"))
    interrupted = index_shards(config, run, PLACES)
    for _ in range(num_shards_before):
        next(interrupted)
    interrupted.close()
    assert index_source(config, run, PLACES).left_out == COUNTS


def test_a_limit_ends_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    manifest = index_source(source_with_litter(tmp_path, limit=1), Run.open(str(tmp_path / "run")), PLACES)
    assert (manifest.num_images, sum(manifest.left_out.values())) == (1, 1)


def test_index_and_status_report_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    source = source_with_litter(tmp_path)
    tree = {**scripted_tree(tmp_path / "images", tmp_path / "run"), "source": source.model_dump()}
    index(RunContext.open(RunConfig.model_validate(tree)))
    words = "left out 20 files: .heic 9 (needs mpa-ray[heic]), .txt 9, no ending 1, smaller than source.min_bytes 1"
    assert f"index: {words}\n" in capsys.readouterr().out
    assert status(Run.open(str(tmp_path / "run"))).phases[0].note == words


def test_counts_in_words() -> None:
    counts = {".heic": 312, "no ending": 4, "._* (AppleDouble)": 131}
    assert left_out_in_words(counts) == "left out 447 files: .heic 312, ._* 131 (AppleDouble), no ending 4"
    assert left_out_in_words({".txt": 1}) == "left out 1 file: .txt 1"
    many = {f".{n:02d}": 1 for n in range(20)}
    assert left_out_in_words(many).endswith(".11 1, 8 more")


def test_the_number_of_labels_is_bounded() -> None:
    counts: Counter[str] = Counter()
    add_left_out(counts, {f".{n}": 1 for n in range(10 * MAX_LABELS)})
    assert (len(counts), counts.total()) == (MAX_LABELS + 1, 10 * MAX_LABELS)
    assert counts[OTHER] == 9 * MAX_LABELS
