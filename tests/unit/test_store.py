"""The commit protocol, fingerprints, formats and the audit, on local files."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.cli.run_job import run_job
from mpa_ray.config import EvaluationRunConfig
from mpa_ray.errors import ConfigError, FingerprintMismatch
from mpa_ray.records import Annotation, ImageRef, ParitySample, Verdict, arrow_schema, from_table, to_table
from mpa_ray.run.audit import audit
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.garbage import Collected, collect_garbage
from mpa_ray.run.joined_datasets import DatasetsOfModels
from mpa_ray.run.parity_export import export_parity, read_parity
from mpa_ray.run.run import FORMAT, Run
from mpa_ray.run.suspects import Suspects
from mpa_ray.stages.judge import parity_samples
from mpa_ray.storage.local import LocalStorage
from mpa_ray.storage.open import open_storage
from mpa_ray.tasks.library import TASKS

SAMPLES = [ParitySample("0.png#0", "0.png", "/images/0.png", "?", "a", "b")]
REFS = [ImageRef(f"{i}.png", f"/images/{i}.png", 10) for i in range(4)]


def test_rows_are_read_back_from_a_table() -> None:
    rows = [
        Annotation("a#0", "a", "/a", "kept", question="?", answer="x", mean_logprob=-0.5),
        Annotation("b#0", "b", "/b", "failed"),
    ]
    assert from_table(to_table(rows, Annotation), Annotation) == rows
    assert not arrow_schema(Annotation).field("image_id").nullable
    with pytest.raises(ValueError, match="not Verdict rows"):
        from_table(to_table(rows, Annotation), Verdict)


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.create("marker", str(i).encode()), range(16)))
    assert won.count(True) == 1
    assert storage.read("marker") == str(won.index(True)).encode()
    assert [p.name for p in tmp_path.iterdir()] == ["marker"]


def test_the_first_commit_of_a_shard_counts(tmp_path: Path) -> None:
    dataset = ShardedDataset(LocalStorage(str(tmp_path)), "corpus", ImageRef)
    assert dataset.commit("000000", REFS[:2])
    assert not dataset.commit("000000", REFS[2:])
    assert dataset.read("000000") == REFS[:2]
    assert dataset.missing(["000000", "000001"]) == ["000001"]


def test_rows_without_a_marker_are_not_read(tmp_path: Path) -> None:
    dataset = ShardedDataset(LocalStorage(str(tmp_path)), "corpus", ImageRef)
    dataset.commit("000000", REFS)
    (tmp_path / "corpus/commits/000000.json").unlink()
    assert list(dataset.rows(["000000"])) == []
    with pytest.raises(FileNotFoundError, match="not committed"):
        dataset.read("000000")


def test_settings_may_change_until_a_dataset_has_rows(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    run.register_fingerprint("annotations", {"prompt": "Ask.", "top_p": 0.9})
    run.register_fingerprint("annotations", {"prompt": "Beg.", "top_p": 0.9})
    run.annotations.commit("000000", [])
    run.register_fingerprint("annotations", {"prompt": "Beg.", "top_p": 0.9})
    for check in (run.register_fingerprint, run.check_fingerprint):
        with pytest.raises(FingerprintMismatch, match=r"prompt: was 'Beg\.', now 'Ask\.'") as caught:
            check("annotations", {"prompt": "Ask.", "top_p": 0.9})
        assert "top_p" not in str(caught.value)


def test_long_values_that_differ_are_cut_to_the_difference(tmp_path: Path) -> None:
    run, other = Run.open(str(tmp_path)), {"task": "chart_qa"}
    prompts = {f"prompt_{i}": "Look at the image closely before you reply. " * 20 + str(i) for i in range(6)}
    run.register_fingerprint("annotations", {"task": "text_vqa", **prompts})
    run.annotations.commit("000000", [])
    changed = {name: prompt.removesuffix(name[-1]) + "Be short." for name, prompt in prompts.items()}
    with pytest.raises(FingerprintMismatch) as caught:
        run.check_fingerprint("annotations", other | changed)
    message = str(caught.value)
    assert "task: was 'text_vqa', now 'chart_qa'" in message
    assert "now '...you reply. Be short.'" not in message
    assert "reply. Be short.'; " in message
    assert "also prompt_3, prompt_4, prompt_5" in message
    assert len(message) < 900


def test_the_remedy_for_a_changed_student_keeps_the_teachers_work(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    run.register_fingerprint("verdicts/small", {"small.model": "a"})
    run.verdicts("small").commit("000000", [])
    with pytest.raises(FingerprintMismatch, match="rename student small: the teacher's work is kept"):
        run.register_fingerprint("verdicts/small", {"small.model": "b"})


def test_an_unwritable_run_directory_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ConfigError, match=r"run_dir.*cannot be written"):
        Run.open(str(blocker / "run"))
    with pytest.raises(ConfigError, match="ftp:// is not supported: give a local path or an s3:// URI"):
        open_storage("ftp://host/run")
    with pytest.raises(ConfigError, match="neither a folder nor an s3:// URI"):
        Run.open("gs://bucket/run")


@pytest.mark.parametrize(
    ("stored", "origin"),
    [
        # Version 0.1.0 stored no number.
        ({"config": {}, "versions": {"mpa-ray": "0.1.0"}}, "format 1 by mpa-ray 0.1.0; this version reads format 2"),
        ({"format": 3, "versions": {"mpa-ray": "0.9.0"}}, "format 3 by mpa-ray 0.9.0; this version reads format 2"),
        ({"versions": None}, "format 1 by mpa-ray 0.1; this version reads format 2"),
        ({"format": None, "versions": ["0.1.0"]}, "format None by mpa-ray 0.1; this version reads format 2"),
    ],
)
def test_a_run_of_another_format_is_refused_in_one_line(
    tmp_path: Path, stored: dict[str, Any], origin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(stored))

    def job() -> None:
        Run.open(str(tmp_path))

    assert run_job(job) == 2
    (line,) = capsys.readouterr().err.splitlines()
    versions = stored["versions"]
    version = versions["mpa-ray"] if isinstance(versions, dict) else "0.1"
    assert line.startswith(f"ConfigError: run_dir = {str(tmp_path)!r}: was written in {origin}. ")
    assert f"Continue it with mpa-ray {version}, or give a new run_dir." in line
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_of_this_format_is_opened_again(tmp_path: Path) -> None:
    alone = EvaluationRunConfig(run_dir=str(tmp_path))
    Run.open(alone.run_dir).record_config(alone, {})
    assert Run.open(alone.run_dir).read_json("run.json")["format"] == FORMAT


def test_every_dataset_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    """In earlier versions, slashes were written as dots, so the datasets of each pair shared a file."""
    run = Run.open(str(tmp_path))
    pairs = [
        (run.student_dir("x", "all"), run.student_dir("x.all").removesuffix("/parity")),
        (run.predictions("a", "questions").folder, run.questions("a.predictions").folder),
        (run.student_dir("x", "all"), run.student_dir("x.all")),
    ]
    datasets = {dataset: {"dataset": dataset} for pair in pairs for dataset in pair}
    for dataset, fingerprint in datasets.items():
        run.register_fingerprint(dataset, fingerprint)
    run.record_config(EvaluationRunConfig(run_dir=str(tmp_path)), {})
    assert run.read_json("run.json")["fingerprints"] == datasets


def test_a_rematch_is_not_another_students_export(tmp_path: Path) -> None:
    """In earlier versions, `--rematch` of `small` by `exact` replaced the D_PI of a student named `small.exact`."""
    run = Run.open(str(tmp_path))
    export_parity(run, run.parity_dir("small.exact"), TASKS["demo_world"], SAMPLES)
    export_parity(run, run.rematch_dir("small", "exact"), TASKS["demo_world"], [])
    assert read_parity(run, "small.exact") == SAMPLES
    assert not run.is_identified("small")


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    """A run of two shards, annotated and identified."""
    run = Run.open(str(tmp_path))
    run.write_json("run.json", {"config": {"students": [{"name": "small"}]}})
    run.write_json("corpus/manifest.json", {"num_images": 4, "num_shards": 2})
    kept = Verdict("0.png#0", "0.png", "/images/0.png", "kept", None, question="?", answer="a", student_answer="b")
    rows = [
        replace(kept, annotation_id=f"{r.image_id}#0", image_id=r.image_id, state=s, reason=reason)
        for r, (s, reason) in zip(
            REFS,
            [("kept", None), ("dropped", "student_correct"), ("failed", "empty_file"), ("kept", None)],
            strict=True,
        )
    ]
    for shard in (0, 1):
        part = slice(2 * shard, 2 * shard + 2)
        run.corpus.commit(f"{shard:06d}", REFS[part])
        annotations = [
            Annotation(v.annotation_id, v.image_id, v.uri, "failed" if v.state == "failed" else "kept", v.reason)
            for v in rows[part]
        ]
        run.annotations.commit(f"{shard:06d}", annotations)
        run.verdicts("small").commit(f"{shard:06d}", rows[part])
    export_parity(run, run.parity_dir("small"), TASKS["demo_world"], parity_samples(rows))
    return run


def test_the_audit_counts_rows_by_outcome(finished: Run) -> None:
    assert audit(finished).to_json() == {
        "images": 4,
        "annotated": 3,
        "kept": {"small": 2},
        "dropped": {"student_correct": 1},
        "failed": {"empty_file": 1},
        "students": {"small": {"dropped": {"student_correct": 1}, "failed": {"empty_file": 1}}},
        "problems": [],
    }


def test_the_audit_finds_a_missing_shard(finished: Run) -> None:
    Path(finished.storage.root, "annotations/commits/000001.json").unlink()
    assert any("annotations: shard 000001 is missing (2 images)" in p for p in audit(finished).problems)


def test_the_audit_finds_a_missing_and_a_repeated_image(finished: Run) -> None:
    marker = Path(finished.storage.root, "annotations/commits/000000.json")
    marker.chmod(marker.stat().st_mode | stat.S_IWUSR)
    marker.unlink()
    row = Annotation("0.png#0", "0.png", "/images/0.png", "kept")
    finished.annotations.commit("000000", [row, row])
    problems = " ".join(audit(finished).problems)
    assert "missing: 1.png" in problems
    assert "ids repeated: 0.png#0" in problems


def test_the_audit_finds_a_file_that_contradicts_its_marker(finished: Run) -> None:
    marker = Path(finished.storage.root, "verdicts/small/commits/000000.json")
    commit = json.loads(marker.read_text())
    older = {name: commit[name] for name in ("shard", "file")}
    marker.write_text(json.dumps({**older, "num_rows": 7}))
    assert any("2 rows, but its marker says 7" in problem for problem in audit(finished).problems)


def test_the_audit_finds_a_damaged_and_a_missing_file(finished: Run) -> None:
    folder = Path(finished.storage.root)
    next((folder / "annotations/data").glob("000000-*")).write_bytes(b"PAR1 and no more")
    (folder / "parity/small/parity.parquet").unlink()
    problems = " ".join(audit(finished).problems)
    assert "annotations: shard 000000 cannot be read" in problems
    assert "parity/small: cannot be read" in problems


def test_the_audit_compares_parity_samples_with_kept_rows(finished: Run) -> None:
    export_parity(finished, finished.parity_dir("small"), TASKS["demo_world"], [])
    assert any("parity/small: kept rows missing: 0.png#0, 3.png#0" in p for p in audit(finished).problems)


def test_files_that_no_marker_names_are_garbage(finished: Run) -> None:
    content = finished.annotations.storage.read(finished.annotations.commit_of("000000").file)  # type: ignore[union-attr]
    for name in (
        "annotations/data/000000-of-a-loser.parquet",
        "verdicts/small/data/.unfinished",
        "corpus/commits/.half",
    ):
        finished.storage.write(name, content)
    before = audit(finished)
    assert collect_garbage(finished, timedelta(hours=1)) == Collected(0, 0, 0)
    assert collect_garbage(finished, timedelta(seconds=-5)) == Collected(3, 3 * len(content), 0)
    assert audit(finished) == before
    assert before.problems == []


def test_what_is_known_of_images_that_kill_engines_is_garbage_once_their_shard_is_committed(finished: Run) -> None:
    done, left = (finished.annotations.suspects_file("000001", generation) for generation in (0, 1))
    unfinished = "annotations/suspects/.000001.0.json.half"
    shared = DatasetsOfModels({"small": finished.annotations}).suspects_file("000001", 0)
    for file in (done, left, shared):
        file.write(Suspects((("a",),)))
    finished.storage.write(unfinished, b"{")
    assert audit(finished).problems == []
    assert collect_garbage(finished, timedelta(seconds=-5)).num_files == 3
    assert finished.annotations.list_suspects() == {left.path}
    assert not finished.storage.exists(unfinished)


def test_a_full_disk_is_reported_before_any_work(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    finished.check_free_space(1000)
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda _: 40 * 2**20)
    finished.check_free_space(1000)
    with pytest.raises(ConfigError, match=r"has 40 MiB free, and 1000000 rows need 93 MiB or more"):
        finished.check_free_space(1_000_000)
