"""Files, objects and mounts that would block a read forever: each read ends, with an error that says why."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpa_ray.config import BenchmarkConfig, ObjectStoreConfig, SourceConfig, load_config
from mpa_ray.config.regular_file import open_regular_file, read_regular_file
from mpa_ray.corpus.index import Selection
from mpa_ray.corpus.places.local import LocalPlace
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.benchmark import read_benchmark
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason
from mpa_ray.storage.deadline import Expiry, call_with_deadline
from mpa_ray.storage.local import LocalStorage
from mpa_ray.tasks.task import load_task

PLACES = Places(ObjectStoreConfig())


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    (path.parent / "link").symlink_to("pipe")
    path.symlink_to("link")


def unix_socket(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    # A socket's path may have at most 107 bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    listener.close()


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


IRREGULAR = [pipe, link_to_pipe, unix_socket, link_to_device]


@pytest.fixture(params=IRREGULAR, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    maker: Callable[[Path], None] = request.param
    return maker


def test_what_is_not_a_regular_file_is_never_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    for read in (open_regular_file, read_regular_file, LocalPlace().size, LocalPlace().read):
        with pytest.raises(OSError, match="not a regular file"):
            read(str(path))
    with pytest.raises(OSError, match="not a regular file"):
        LocalStorage(str(tmp_path)).read("a.png")
    (content,) = Reader(ObjectStoreConfig()).read([str(path)])
    assert isinstance(content, ImageProblem)
    assert content.reason == Reason.UNREADABLE
    assert "not a regular file" in content.detail


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert read_regular_file(tmp_path / "b") == b"content"
    assert LocalPlace().read(str(tmp_path / "b"), 3, 100) == b"tent"
    with pytest.raises(IsADirectoryError):
        read_regular_file(tmp_path)


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl", "a.parquet", "a.tar"])
def test_a_source_that_is_not_a_regular_file_is_refused(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(ConfigError, match="not a regular file"):
        list(Selection(SourceConfig(path=str(tmp_path / name)), PLACES).images())


def test_an_entry_of_a_list_that_is_not_a_regular_file_is_a_reason(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    refs = list(Selection(SourceConfig(path=str(tmp_path / "list.txt")), PLACES).images())
    (content,) = Reader(ObjectStoreConfig()).read([ref.uri for ref in refs])
    assert isinstance(content, ImageProblem)


def test_questions_that_are_not_a_regular_file_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "questions.json")
    benchmark = BenchmarkConfig.model_validate({"kind": "questions", "path": str(tmp_path / "questions.json")})
    with pytest.raises(ConfigError, match="not a regular file"):
        list(read_benchmark(benchmark, PLACES))


def test_settings_and_tasks_that_are_not_regular_files_are_refused(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "my.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path / "my.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_task(tmp_path / "my.yaml")


def test_a_file_that_becomes_a_pipe_is_not_opened_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(tmp_path / "a")
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda _: regular)
    with pytest.raises(OSError, match="is a named pipe"):
        open_regular_file(tmp_path / "a")


class Stuck(LocalPlace):
    """A mount that does not answer."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.num_reads = 0

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        if "stuck" in uri:
            self.num_reads += 1
            self.released.wait()
        return read_local(self, uri, first, num_bytes)


read_local = LocalPlace.read


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    place = Stuck()
    monkeypatch.setattr(LocalPlace, "read", lambda _, *part: place.read(*part))
    yield place
    place.released.set()


@pytest.mark.usefixtures("stuck")
def test_a_read_that_hangs_is_given_up_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "fine").write_bytes(b"content")
    reader = Reader(ObjectStoreConfig(read_deadline_s=0.2), num_threads=4)
    contents = reader.read([f"{tmp_path}/stuck", f"{tmp_path}/fine"])
    assert isinstance(contents[0], ImageProblem)
    assert "not read within 0.2 s" in contents[0].detail
    assert contents[1] == b"content"


def test_a_shard_on_a_dead_mount_is_given_up_as_a_whole(stuck: Stuck) -> None:
    contents = Reader(ObjectStoreConfig(read_deadline_s=0.2), num_threads=4).read([f"/stuck/{n}" for n in range(64)])
    assert all(isinstance(content, ImageProblem) for content in contents)
    assert stuck.num_reads < 12


@pytest.mark.usefixtures("stuck")
def test_a_source_on_a_dead_mount_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "stuck.txt").write_text("a.png\n")
    places = Places(ObjectStoreConfig(read_deadline_s=0.2))
    with pytest.raises(ConfigError, match=r"not read within 0\.2 s"):
        list(Selection(SourceConfig(path=f"{tmp_path}/stuck.txt"), places).images())


def test_a_call_returns_its_result_and_raises_its_error() -> None:
    assert call_with_deadline(lambda: 7, 5, "x") == 7
    with pytest.raises(KeyError, match="GONE"):
        call_with_deadline(lambda: os.environ["GONE"], 5, "x")


def test_threads_of_calls_are_reused() -> None:
    call_with_deadline(lambda: None, 5, "x")
    before = threading.active_count()
    for _ in range(50):
        call_with_deadline(lambda: None, 5, "x")
    assert threading.active_count() <= before + 1


def test_a_call_that_expires_is_cut_off() -> None:
    cut_off = threading.Event()

    def call() -> None:
        Expiry.current().on_expiry(cut_off.set)
        cut_off.wait()

    with pytest.raises(TimeoutError, match=r"x: not read within 0\.1 s"):
        call_with_deadline(call, 0.1, "x")
    assert cut_off.is_set()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_its_own_threads() -> None:
    call_with_deadline(lambda: None, 5, "x")
    child = os.fork()
    if child == 0:
        os._exit(call_with_deadline(lambda: 7, 5, "x"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
