"""Every message that says what continues a run, and whether that is true.

Messages end with a sentence of `mpa_ray.errors.remedies` in these places: `cli/run_job.py` (errors of files,
interrupts),
`pipeline/graph.py` (a shard's failure, an error of Ray), `pipeline/pass_outcomes.py` (shards that are left),
`leveling/driver.py` (failed training), `pipeline/cluster.py` (a cluster that cannot be joined) and
`campaign/campaign.py` (failed students). `CAUSES` lists what can lead there. Below, commands meet the causes that files
and disks have: the same command continues, or it fails again until the sentence is followed. Outages of stores, lost
access and failed images are in test_outages.py, interrupts in test_interrupts.py, engines in test_poison_search.py.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from ray.exceptions import NodeDiedError, OutOfDiskError, OutOfMemoryError, RayActorError, RayTaskError

from mpa_ray.cli import main
from mpa_ray.cli.run_job import UNFINISHED, run_job
from mpa_ray.errors import AccessLost, CannotWrite, ConfigError, DamagedFile, RunError, TransientError, Unfinished
from mpa_ray.errors.remedies import Remedy, continues_at_once, what_continues
from mpa_ray.pipeline.graph import _error
from mpa_ray.pipeline.graph_rows import Failure
from mpa_ray.run.dataset import ShardedDataset
from tests.conftest import scripted_tree
from tests.local_stream import without_ray

ROOT = Path(__file__).parents[2]
ZMQ = 'the engine of s cannot start: ZMQError: ipc path "/x/y" is longer than 107 characters (sizeof(sun_path)).'
AF_UNIX = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x/y"


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def of_ray(cause: Exception) -> RayTaskError:
    return RayTaskError("f", "Traceback (most recent call last)", cause)


CAUSES: list[tuple[BaseException | str, Remedy]] = [
    # The same command continues.
    (KeyboardInterrupt(), Remedy.SAME_COMMAND),
    (TransientError("s3://b/k: timed out"), Remedy.SAME_COMMAND),
    (OSError(errno.EIO, "Input/output error"), Remedy.SAME_COMMAND),
    (TimeoutError("/mnt/x: not read within 60 s"), Remedy.SAME_COMMAND),
    (AccessLost("s3://b/k: ExpiredToken. Renew the credentials, and check the clock."), Remedy.SAME_COMMAND),
    (Unfinished("the store is busy"), Remedy.SAME_COMMAND),
    ("LostOwnership: another command trains student small", Remedy.SAME_COMMAND),
    (NodeDiedError("a node died"), Remedy.SAME_COMMAND),
    (RayActorError(), Remedy.SAME_COMMAND),
    (OutOfMemoryError("killed"), Remedy.SAME_COMMAND),
    (of_ray(TransientError("s3://b/k")), Remedy.SAME_COMMAND),
    ("8 engines were ended from outside while they processed shard 000000", Remedy.SAME_COMMAND),
    ("training failed: training worker 0: TransientError: s3://b/k", Remedy.SAME_COMMAND),
    # It continues after something outside of the run has changed.
    (CannotWrite("/run/x", "No space left on device"), Remedy.CHECK),
    ("training failed: training worker 0: CannotWrite: /run/x cannot be written", Remedy.CHECK),
    (OSError(errno.ENOSPC, "No space left on device"), Remedy.FREE_SPACE),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), Remedy.FREE_SPACE),
    (of_ray(OSError(errno.ENOSPC, "full")), Remedy.FREE_SPACE),
    (OutOfDiskError("Local disk is full: No space left on device"), Remedy.FREE_SPACE),
    ("training failed: OSError: [Errno 28] No space left on device", Remedy.FREE_SPACE),
    (OSError(errno.EMFILE, "Too many open files"), Remedy.FEWER_FILES),
    (PermissionError(errno.EACCES, "Permission denied"), Remedy.PERMISSIONS),
    (OSError(errno.EROFS, "Read-only file system"), Remedy.PERMISSIONS),
    (OSError(AF_UNIX), Remedy.SHORTER_SOCKET),
    (of_ray(OSError(AF_UNIX)), Remedy.SHORTER_SOCKET),
    (ZMQ, Remedy.SHORTER_SOCKET),
    # It fails in the same way.
    (OSError(errno.ENAMETOOLONG, "File name too long"), Remedy.SHORTER_PATH),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), Remedy.DAMAGED),
    (pa.ArrowInvalid("Parquet magic bytes not found in footer"), Remedy.DAMAGED),
    (OSError("Couldn't deserialize thrift: don't know what type"), Remedy.DAMAGED),
    (json.JSONDecodeError("Expecting value", "", 0), Remedy.DAMAGED),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), Remedy.DAMAGED),
    (of_ray(pa.ArrowInvalid("Parquet file size is 0 bytes")), Remedy.DAMAGED),
    (of_ray(DamagedFile("corpus/data/000000-x.parquet", "it is missing")), Remedy.DAMAGED),
    (RunError("the engine died 10 times on shard 000000"), Remedy.CAUSE),
    (OSError("s3://b/k: InvalidRequest (attempt 1)"), Remedy.CAUSE),
    ("the engine of s cannot start: CUDA out of memory", Remedy.CAUSE),
    (KeyError("no such row"), Remedy.UNKNOWN),
    (of_ray(KeyError("no such row")), Remedy.UNKNOWN),
    # The message has its own remedy.
    (ConfigError("run_dir", "x", "is wrong.", "Give another."), Remedy.NONE),
    (DamagedFile("corpus/commits/000000.json", "it is no JSON"), Remedy.NONE),
    (caused(ConfigError("source.path", "x", "cannot be read.", ""), TransientError("x")), Remedy.SAME_COMMAND),
]


@pytest.mark.parametrize(
    ("error", "remedy"), CAUSES, ids=[f"{remedy.name}-{number}" for number, (_, remedy) in enumerate(CAUSES)]
)
def test_the_kind_of_an_error_decides_what_continues(error: BaseException | str, remedy: Remedy) -> None:
    assert what_continues(error) is remedy
    if isinstance(error, BaseException):
        assert continues_at_once(error) is (remedy is Remedy.SAME_COMMAND)


def test_only_what_needs_no_change_of_the_run_has_exit_code_3() -> None:
    assert {remedy for remedy in Remedy if remedy.may_pass} == {remedy for _, remedy in CAUSES} - {
        *(Remedy.SHORTER_SOCKET, Remedy.SHORTER_PATH, Remedy.DAMAGED),
        *(Remedy.CAUSE, Remedy.UNKNOWN, Remedy.NONE),
    }


def test_no_other_place_promises_that_the_same_command_continues() -> None:
    """Texts that are written elsewhere name a command that does more, or what comes first."""
    allowed = {
        "campaign/campaign.py": 2,  # decided by `continues_at_once`
        "phases/repeated_work.py": 1,  # the same command with --redo
        "run/ownership.py": 1,  # waits for another command
        "pipeline/cluster_address.py": 1,  # when the cluster answers
        "cli/run_job.py": 1,  # the help about exit codes
        "errors/__init__.py": 1,  # a damaged file, after audit --repair
        "run/run.py": 1,  # likewise, for a JSON file
        "run/damage.py": 1,  # likewise, as a finding of audit --deep
        "run/audit_shards.py": 1,  # after audit --repair has run
        "run/audit_deep.py": 2,  # a manifest is missing, which commands write
        "cli/commands.py": 1,  # the help about --repair
    }
    counts: dict[str, int] = {}
    for path in set((ROOT / "mpa_ray").rglob("*.py")) - {ROOT / "mpa_ray/errors/remedies.py"}:
        tree = ast.parse(path.read_text())
        notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in notes]
        promises = [text for text in texts if isinstance(text, str) and re.search(r"same\s+command", text)]
        if promises:
            counts[path.relative_to(ROOT / "mpa_ray").as_posix()] = len(promises)
    assert {name: number for name, number in counts.items() if number > allowed.get(name, 0)} == {}


@pytest.mark.parametrize("remedy", [Remedy.SAME_COMMAND, Remedy.FREE_SPACE, Remedy.DAMAGED])
def test_the_failure_of_a_shard_keeps_its_remedy_between_processes(remedy: Remedy) -> None:
    error = next(error for error, expected in CAUSES if expected is remedy and isinstance(error, OSError | ValueError))
    raised = _error("annotate:teacher", Failure.of(error))
    assert str(raised).endswith(remedy)
    assert isinstance(raised, Unfinished) is remedy.may_pass


# --- Commands


class Commands:
    def __init__(self, images: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run_dir, self._file, self._capsys = folder / "run", folder / "config.yaml", capsys
        tree: dict[str, Any] = scripted_tree(images, self.run_dir)
        tree["source"] |= {"limit": 16, "skip_duplicates": False}
        self._file.write_text(yaml.safe_dump(tree))

    def run(self, name: str) -> tuple[int, str]:
        """The exit code, and the error in one line."""
        code = main([name, "--config", str(self._file)])
        return code, "".join(self._capsys.readouterr().err.splitlines())

    def is_whole(self) -> bool:
        code = main(["audit", str(self.run_dir)])
        return code == 0 and json.loads(self._capsys.readouterr().out)["annotated"] == 16


@pytest.fixture
def commands(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    without_ray(monkeypatch)
    commands = Commands(images, tmp_path, capsys)
    assert commands.run("index") == (0, "")
    return commands


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_file_is_no_reason_to_run_the_same_command(
    commands: Commands, damage: Callable[[Path], None]
) -> None:
    (file, *_) = sorted((commands.run_dir / "corpus").rglob("*.parquet"))
    content = file.read_bytes()
    damage(file)
    for _ in range(2):
        code, line = commands.run("annotate")
        assert code == 1
        assert "damaged" in line
        assert "mpa-ray audit" in line
    main(["audit", str(commands.run_dir)])
    file.write_bytes(content)
    assert commands.run("annotate") == (0, "")
    assert commands.run("identify") == (0, "")
    assert commands.is_whole()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_cannot_be_written_is_checked_first(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        for _ in range(2):
            # The disk becomes full between the check at the start and the first result.
            patch.setattr(ShardedDataset, "commit", fail)
            code, line = commands.run("annotate")
            assert code == 3
            assert line.endswith("un the same command again to continue.")
    assert commands.run("annotate") == (0, "")
    assert commands.run("identify") == (0, "")
    assert commands.is_whole()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            AccessLost("s3://b/k: ExpiredToken. Renew the credentials, and check the clock."),
            "Unfinished: s3://b/k: ExpiredToken. Renew the credentials, and check the clock. "
            "Run the same command again to continue.",
        ),
        (
            Unfinished("annotate: 2 shards are left. Run the same command again to continue."),
            "Unfinished: annotate: 2 shards are left. Run the same command again to continue.",
        ),
        (
            TransientError("s3://b/k: no answer (attempt 3)"),
            "Unfinished: TransientError: s3://b/k: no answer (attempt 3). Run the same command again to continue.",
        ),
    ],
)
def test_a_command_that_can_continue_says_so_once(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_job(fail) == UNFINISHED
    assert capsys.readouterr().err == f"{line}\n"
