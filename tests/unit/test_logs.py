"""RUN/logs: records and logs of what died."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import CannotWrite
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.run import logs
from mpa_ray.run.audit import audit
from mpa_ray.run.garbage import collect_garbage
from mpa_ray.run.logs import Death, deaths, record_death, record_lost_process
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.storage.local import LocalStorage
from mpa_ray.storage.open import open_storage
from mpa_ray.storage.storage import Storage
from tests.s3_server import CREDENTIALS, s3_server
from tests.unit.test_status import begun

ANNOTATE = PhaseKey("annotate")


def process_with(folder: Path, log: str, role: str = "engine of teacher", pid: int = 7) -> WorkerProcess:
    path = folder / f"worker-{pid}.err"
    path.write_text(log)
    return WorkerProcess(role, pid, "node-1", "", (str(path),), None)


def log_of(storage: Storage, death: Death) -> str:
    assert death.log is not None
    return storage.read(death.log).decode()


def test_the_log_of_a_dead_process_is_kept_with_its_cause(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "run"))
    process = process_with(tmp_path, "loading\nMemoryError: cannot allocate 7 GiB\n")
    death = record_death(storage, ANNOTATE, process, None)
    assert death.cause == "MemoryError: cannot allocate 7 GiB"
    assert death.process == "the engine of teacher (process 7 on node-1)"
    assert death.in_words(storage.root) == f"{death.cause} (log: {tmp_path}/run/{death.log})"
    assert "loading" in log_of(storage, death)
    assert deaths(storage).latest == [death]
    assert deaths(storage).num_by_phase == {"annotate": 1}


def test_what_the_process_reported_counts_more_than_its_log(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "run"))
    process = process_with(tmp_path, "ValueError: handled\n")
    assert record_death(storage, ANNOTATE, process, "no reply in 5 seconds").cause == "no reply in 5 seconds"


def test_a_silent_death_quotes_the_last_lines(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "run"))
    cause = record_death(storage, ANNOTATE, process_with(tmp_path, "one\ntwo\n"), None).cause
    assert cause == "the process ended without an error, as it does after SIGKILL. Its last lines: one | two"


def test_a_kill_by_the_kernel_for_lack_of_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "num_oom_kills", lambda: 4)
    process = replace(process_with(tmp_path, "working\n"), num_oom_kills=3)
    death = record_death(LocalStorage(str(tmp_path / "run")), ANNOTATE, process, None)
    assert death.cause.startswith("killed by the kernel, because the machine ran out of memory")


def test_a_kill_by_ray_for_lack_of_memory_is_named(tmp_path: Path) -> None:
    message = "2 worker(s) were killed due to the node running low on memory. pid 7"
    (tmp_path / "raylet.out").write_text(f"[2026 I] {message}\n")
    death = record_death(LocalStorage(str(tmp_path / "run")), ANNOTATE, process_with(tmp_path, "working\n"), None)
    assert "running low on memory" in death.cause


def test_a_copy_is_bounded_and_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    log = "x" * (2 * logs.MAX_LOG_BYTES) + "\nhttps://me:pass@host/ hf_very_secret\nOSError: s3://key:word@bucket\n"
    storage = LocalStorage(str(tmp_path / "run"))
    death = record_death(storage, ANNOTATE, process_with(tmp_path, log), None)
    copy = log_of(storage, death)
    assert len(copy) < logs.MAX_LOG_BYTES + 1000
    assert not any(secret in copy + death.cause for secret in ("hf_very_secret", "pass", "word"))
    assert death.cause == "OSError: s3://***@bucket"


def test_names_never_collide_and_phases_stay_apart(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "run"))
    keys = [PhaseKey("level", "x--all"), PhaseKey("level", "x", "all"), PhaseKey("level", "x.all"), ANNOTATE]
    process = process_with(tmp_path, "end\n")
    recorded = [record_death(storage, key, process, "same") for key in keys for _ in range(3)]
    assert len({death.log for death in recorded}) == 12
    assert deaths(storage).num_by_phase == {key.label: 3 for key in keys}
    assert len(deaths(storage).latest) == 5


def test_a_phase_keeps_a_limited_number_of_logs_and_counts_all_deaths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LOGS_PER_PHASE", 2)
    storage = LocalStorage(str(tmp_path / "run"))
    process = process_with(tmp_path, "end\n")
    recorded = [record_death(storage, ANNOTATE, process, "same") for _ in range(4)]
    assert [death.log is None for death in recorded] == [False, False, True, True]
    assert deaths(storage).total == 4


class FullStorage(LocalStorage):
    def create(self, path: str, content: bytes) -> bool:  # noqa: ARG002
        raise CannotWrite(path, "No space left on device")


def test_a_full_disk_does_not_hide_the_cause(tmp_path: Path) -> None:
    storage = FullStorage(str(tmp_path / "run"))
    death = record_death(storage, ANNOTATE, process_with(tmp_path, "end\n"), "the cause")
    assert death.in_words(storage.root) == "the cause"


def test_a_node_that_is_gone_leaves_a_record(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "run"))
    record_lost_process(storage, ANNOTATE, process_with(tmp_path, "end\n"), "its node has ended")
    assert (deaths(storage).latest[0].cause, deaths(storage).latest[0].log) == ("its node has ended", None)


def test_logs_are_written_to_an_object_store(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        storage = open_storage("s3://bucket/run", ObjectStoreConfig(endpoint_url=endpoint))
        death = record_death(storage, ANNOTATE, process_with(tmp_path, "KeyError: 'x'\n"), None)
        assert "KeyError" in log_of(storage, death)
        assert deaths(storage).latest == [death]


def test_audit_and_garbage_collection_leave_logs_alone(tmp_path: Path) -> None:
    run = begun(str(tmp_path / "run"), students=("small",))
    death = record_death(run.storage, ANNOTATE, process_with(tmp_path, "end\n"), None)
    problems = audit(run).problems
    assert not any("logs" in problem for problem in problems)
    collect_garbage(Run(run.storage), timedelta(0))
    assert "end" in log_of(run.storage, death)
    assert json.loads(run.storage.read(f"{death.log}".replace(".log", ".json")))["cause"] == death.cause


@pytest.mark.parametrize("content", [b"", b"[" * 200_000, b"[]", b"{}", b'{"unknown": 1}', b"\xff"])
def test_a_damaged_record_is_left_out(tmp_path: Path, content: bytes) -> None:
    storage = LocalStorage(str(tmp_path))
    death = record_lost_process(storage, ANNOTATE, process_with(tmp_path, ""), "its node has ended")
    storage.write("logs/annotate--20990101T000000.000000--host-1-12345678.json", content)
    known = deaths(storage)
    assert (known.latest, known.num_by_phase) == ([death], {"annotate": 2})
