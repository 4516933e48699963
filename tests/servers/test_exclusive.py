"""Files that are created only if they do not exist: without hard links, in crashes, and in stores that ignore it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from benchmarks.faulty_proxy import FaultyProxy
from mpa_ray.cli import main
from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import CannotWrite, ConfigError, Unfinished
from mpa_ray.run.garbage import collect_garbage
from mpa_ray.run.run import Run
from mpa_ray.storage.exclusive import Creation, give_name
from mpa_ray.storage.local import LocalStorage
from mpa_ray.storage.s3 import S3Storage
from mpa_ray.storage.storage import PROBES
from tests.conftest import scripted_tree
from tests.no_hard_links import compile_library, environment
from tests.refusing_proxy import HeaderDroppingProxy, RefusingProxy
from tests.s3_server import client, s3_server_of_user

ROOT = Path(__file__).parents[2]
NO_LINKS = sorted({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
CREATE_TWICE = (
    "import sys; from mpa_ray.storage.local import LocalStorage\n"
    "storage = LocalStorage(sys.argv[1])\n"
    "print(storage.create('folder/marker', b'first'), storage.create('folder/marker', b'second'))\n"
)
# Three processes create the same files at the same time. Each content is longer than a page, and ends with its length.
CREATORS = """
import os, sys, uuid
from mpa_ray.storage.local import LocalStorage
storage = LocalStorage(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    creators = []
    for _ in range(3):
        if pid := os.fork():
            creators.append(pid)
            continue
        for number in range(40):
            storage.create(f"markers/{line.strip()}-{number}", uuid.uuid4().hex.encode() * 1000)
        os._exit(0)
    print(*creators, flush=True)
    sys.stdin.readline()
    for pid in creators:
        os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        yield endpoint


def python(code: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def configuration(tmp_path: Path, images: Path, run_dir: str, **more: object) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({**scripted_tree(images, Path("x")), "run_dir": run_dir, **more}))
    return path


# --- Without hard links


def test_a_folder_with_hard_links_uses_them(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    assert run.creation is Creation.HARD_LINK
    assert not any((tmp_path / PROBES).iterdir())


def test_commands_may_check_a_folder_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: Run.open(str(tmp_path)), range(64)))
    assert {run.creation for run in runs} == {Creation.HARD_LINK}
    assert not any((tmp_path / PROBES).iterdir())


@pytest.mark.parametrize("error", NO_LINKS, ids=errno.errorcode.get)
def test_without_hard_links_the_first_creator_wins(library: Path, tmp_path: Path, error: int) -> None:
    done = python(CREATE_TWICE, tmp_path, environment(library, tmp_path, error))
    assert done.stdout == "True False\n", done.stderr
    assert (tmp_path / "folder/marker").read_bytes() == b"first"
    assert files_in(tmp_path / "folder") == ["marker"]


def test_creators_by_link_and_by_rename_exclude_each_other(library: Path, tmp_path: Path) -> None:
    """Two nodes may mount a folder in different ways."""
    LocalStorage(str(tmp_path)).create("folder/marker", b"by link")
    done = python(CREATE_TWICE, tmp_path, environment(library, tmp_path, errno.EPERM))
    assert done.stdout == "False False\n", done.stderr
    assert (tmp_path / "folder/marker").read_bytes() == b"by link"


def test_a_link_whose_answer_was_lost_counts(library: Path, tmp_path: Path) -> None:
    env = environment(library, tmp_path, errno.EEXIST, NO_LINKS_LOSES_ANSWER="1")
    done = python(CREATE_TWICE, tmp_path, env)
    assert done.stdout == "True False\n", done.stderr
    assert files_in(tmp_path / "folder") == ["marker"]


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EEXIST], ids=errno.errorcode.get)
def test_an_exclusive_rename_whose_answer_was_lost_counts(library: Path, tmp_path: Path, error: int) -> None:
    env = environment(library, tmp_path, errno.EPERM, NO_RENAMES_LOSES_ANSWER=str(error))
    done = python(CREATE_TWICE, tmp_path, env)
    assert done.stdout == "True False\n", done.stderr
    assert (tmp_path / "folder/marker").read_bytes() == b"first"
    assert files_in(tmp_path / "folder") == ["marker"]


def test_a_file_that_vanishes_before_it_gets_its_name_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file that has the name does not count as ours."""
    file, name = tmp_path / "temporary", tmp_path / "marker"

    def no_link(*_: object) -> None:
        file.unlink()
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr("mpa_ray.storage.exclusive.os.link", no_link)
    file.write_bytes(b"ours")
    with pytest.raises(FileNotFoundError):
        give_name(file, name)
    name.write_bytes(b"theirs")
    file.write_bytes(b"ours")
    with pytest.raises(OSError, match=r"temporary|marker"):
        give_name(file, name)
    assert name.read_bytes() == b"theirs"


@pytest.mark.parametrize("moment", ["unfinished", "before", "after"])
def test_a_kill_leaves_a_whole_file_or_none(library: Path, tmp_path: Path, moment: str) -> None:
    env = environment(library, tmp_path, errno.EPERM, NO_LINKS_KILL=moment)
    assert python(CREATE_TWICE, tmp_path, env).returncode == -signal.SIGKILL
    storage = LocalStorage(str(tmp_path))
    is_created = moment == "after"
    assert list(storage.list("folder")) == (["folder/marker"] if is_created else [])
    # A dead creator blocks nobody, with either method of creating files.
    done = python(CREATE_TWICE, tmp_path, environment(library, tmp_path, errno.EPERM))
    assert done.stdout == ("False False\n" if is_created else "True False\n")
    assert storage.read("folder/marker") == b"first"


def test_kills_at_any_moment_show_no_reader_a_part_of_a_file(library: Path, tmp_path: Path) -> None:
    draws = random.Random(0)
    env = environment(library, tmp_path, errno.EPERM)
    seen: dict[str, bytes] = {}
    with subprocess.Popen(
        [sys.executable, "-c", CREATORS, str(tmp_path)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        for number in range(15):
            parent.stdin.write(f"{number}\n")
            parent.stdin.flush()
            creators = [int(pid) for pid in parent.stdout.readline().split()]
            # Each creator makes 40 markers, so it is killed at work.
            enough = len(seen) + draws.randrange(2, 12)
            while len(seen) < enough:
                check_markers(tmp_path / "markers", seen)
            for pid in creators:
                # A creator that has ended keeps its process id until its parent reads the next line.
                os.kill(pid, signal.SIGKILL)
            parent.stdin.write("wait\n")
            check_markers(tmp_path / "markers", seen)
        parent.stdin.close()
    check_markers(tmp_path / "markers", seen)
    assert len(seen) > 15
    assert len(seen) < 15 * 40, "no creator was killed at work"


def check_markers(folder: Path, seen: dict[str, bytes]) -> None:
    """Read all markers: each is whole, and the same as when it was read first."""
    for path in folder.glob("[!.]*"):
        content = path.read_bytes()
        assert content == content[:32] * 1000
        assert seen.setdefault(path.name, content) == content


def test_a_folder_with_neither_links_nor_exclusive_renames_is_refused_in_one_line(
    library: Path, tmp_path: Path, images: Path
) -> None:
    run = tmp_path / "run"
    config = configuration(tmp_path, images, str(run))
    env = environment(library, tmp_path, errno.EPERM, NO_RENAMES_ERROR=str(errno.EINVAL))
    done = subprocess.run(
        [sys.executable, "jobs/index.py", "--config", str(config)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"ConfigError: run_dir = '{run}': is on a file system that has no hard links (Operation not "
    )
    assert "and no exclusive renames (Invalid argument)" in line
    assert line.endswith("Give a folder on another file system, or an s3:// prefix.")
    assert not (run / "corpus").exists()
    assert files_in(run / PROBES) == []


def test_a_command_without_hard_links_says_what_it_uses(library: Path, tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    config = configuration(tmp_path, images, str(run))
    done = subprocess.run(
        [sys.executable, "jobs/index.py", "--config", str(config)],
        cwd=ROOT,
        env=environment(library, tmp_path, errno.EPERM),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{run} has no hard links: results are committed by exclusive renames instead" in done.stdout
    assert json.loads((run / "run.json").read_text())["creation"] == "exclusive rename"
    assert sum(1 for _ in (run / "corpus/commits").iterdir()) == 8


def test_reading_a_run_writes_nothing(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["index", "--config", str(configuration(tmp_path, images, str(run)))]) == 0
    (run / ".writable").unlink()
    (run / PROBES).rmdir()
    before = sorted(run.rglob("*"))
    for command in ("status", "audit"):
        main([command, str(run)])
    assert sorted(run.rglob("*")) == before
    assert str(run) in capsys.readouterr().out


def test_what_a_killed_probe_left_is_collected(library: Path, tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    assert main(["index", "--config", str(configuration(tmp_path, images, str(run)))]) == 0
    code = "import sys; from mpa_ray.storage.local import LocalStorage\nLocalStorage(sys.argv[1]).check_create('x')"
    for moment in ("before", "after"):
        env = environment(library, tmp_path, errno.EPERM, NO_LINKS_KILL=moment)
        assert python(code, run, env).returncode == -signal.SIGKILL
    assert len(files_in(run / PROBES)) == 2
    opened = Run(LocalStorage(str(run)))
    assert collect_garbage(opened, timedelta(hours=1)).num_files == 0
    assert collect_garbage(opened, timedelta(seconds=-5)).num_files == 2
    assert files_in(run / PROBES) == []


# --- Siblings: renames over existing files, and long paths


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    (tmp_path / "file/inside").mkdir(parents=True)
    with pytest.raises(CannotWrite, match="file cannot be written"):
        storage.write("file", b"")
    assert files_in(tmp_path) == ["file"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    assert storage.create("a" * 255, b"1")
    storage.write("b" * 255, b"2")
    assert files_in(tmp_path) == ["a" * 255, "b" * 255]
    with pytest.raises(CannotWrite, match="File name too long: give a run_dir with a shorter path, or shorter names"):
        storage.create("c" * 256, b"3")


def test_a_run_directory_whose_path_is_too_long_is_refused(tmp_path: Path) -> None:
    deep = Path(tmp_path, *["d" * 200] * 18)
    with pytest.raises(ConfigError, match=r"run_dir = .* is too long: a path can have 4095 bytes"):
        Run.open(str(deep))


# --- Stores that ignore If-None-Match


def test_a_store_that_ignores_the_condition_is_refused_in_one_line(
    server: str, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HeaderDroppingProxy(server, "If-None-Match") as proxy:
        config = configuration(tmp_path, images, "s3://bucket/ignored", object_store={"endpoint_url": proxy.url})
        assert main(["index", "--config", str(config)]) == 2
        assert proxy.requests == ["GET /bucket/ignored/run.json", *["PUT /bucket/ignored/.writable"] * 3]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ConfigError: run_dir = 's3://bucket/ignored': is in an object store without conditional ")
    assert "it ignores the condition, so two commands could overwrite each other's results." in line
    keys = [entry["Key"] for entry in client(server).list_objects_v2(Bucket="bucket", Prefix="ignored")["Contents"]]
    assert keys == ["ignored/.writable"]


def test_a_store_that_keeps_the_condition_is_asked_twice(server: str) -> None:
    with RefusingProxy(server, lambda *_: None) as proxy:
        run = Run.open("s3://bucket/kept", ObjectStoreConfig(endpoint_url=proxy.url))
        assert run.creation is Creation.CONDITIONAL_PUT
        # The first requests look for run.json, and show that the run can be written.
        _, _, *check = proxy.requests
        assert check == ["PUT /bucket/kept/.writable", "GET /bucket/kept/.writable"]


def test_commands_may_check_a_bucket_at_the_same_time(server: str) -> None:
    store = ObjectStoreConfig(endpoint_url=server)
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: Run.open("s3://bucket/together", store), range(16)))
    assert {run.creation for run in runs} == {Creation.CONDITIONAL_PUT}


def test_faults_of_a_store_do_not_look_like_an_ignored_condition(server: str) -> None:
    """Among them are conditional PUTs whose answer is lost."""
    with FaultyProxy(server, share=0.5, seed=5) as proxy:
        store = ObjectStoreConfig(endpoint_url=proxy.url, max_attempts=20, first_pause_s=0.001)
        for number in range(12):
            assert Run.open(f"s3://bucket/faults-{number}", store).creation is Creation.CONDITIONAL_PUT
        assert proxy.counts()["injected"]["lost_answer PUT"] > 1


def test_a_file_that_another_command_has_just_deleted_proves_nothing(server: str) -> None:
    storage = S3Storage("s3://bucket/deleted", ObjectStoreConfig(endpoint_url=server))
    assert storage.check_create("none") is Creation.CONDITIONAL_PUT


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (403, "AccessDenied")])
def test_a_store_that_refuses_the_condition_is_named(server: str, status: int, code: str) -> None:
    """The GET of run.json and the first PUT have no condition."""
    with RefusingProxy(server, lambda _method, _path, number: (status, code) if number > 1 else None) as proxy:
        store = ObjectStoreConfig(endpoint_url=proxy.url, max_attempts=3, first_pause_s=0.01)
        with pytest.raises(ConfigError, match=rf"without conditional writes .*: it refuses them .*{code}"):
            Run.open(f"s3://bucket/{code}", store)
        assert sum(request.startswith("PUT") for request in proxy.requests) == 2


def test_a_store_that_fails_for_now_during_the_check_is_not_refused(server: str) -> None:
    with RefusingProxy(server, lambda _method, _path, number: (500, "InternalError") if number > 1 else None) as proxy:
        store = ObjectStoreConfig(endpoint_url=proxy.url, max_attempts=2, first_pause_s=0.01)
        with pytest.raises(Unfinished, match=r"s3://bucket/fails/\.writable cannot be written"):
            Run.open("s3://bucket/fails", store)


def test_reading_a_run_in_a_bucket_sends_no_put(server: str, tmp_path: Path, images: Path) -> None:
    with RefusingProxy(server, lambda *_: None) as proxy:
        run_dir, endpoint = "s3://bucket/read", {"endpoint_url": proxy.url}
        assert main(["index", "--config", str(configuration(tmp_path, images, run_dir, object_store=endpoint))]) == 0
        num_before = len(proxy.requests)
        for command in ("status", "audit"):
            main([command, run_dir, "--object_store.endpoint_url", proxy.url])
        requests = proxy.requests[num_before:]
        assert len(requests) > 2
        assert {request.split()[0] for request in requests} <= {"GET", "HEAD"}
