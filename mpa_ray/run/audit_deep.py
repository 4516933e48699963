"""Reads every file of a run that results depend on, and names the damaged and missing ones with their remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from mpa_ray.errors import ConfigError, may_pass
from mpa_ray.matching import MATCHERS
from mpa_ray.observability.progress import Progress
from mpa_ray.run.audit_json import UNREADABLE, json_finding, problem_of
from mpa_ray.run.audit_shards import DatasetAudit
from mpa_ray.run.audit_students import student_findings
from mpa_ray.run.checksums import FILES, damaged_files
from mpa_ray.run.damage import RESTORE, SAME_COMMAND, Finding, set_aside
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.run.fingerprint_files import FINGERPRINTS, content_of, digest_of, name_of, path_of
from mpa_ray.run.logs import FOLDER as LOGS
from mpa_ray.run.markers import Markers
from mpa_ray.run.phase_record import PHASES, PhaseRecord
from mpa_ray.run.recorded_config import arms_by_student, models_by_benchmark
from mpa_ray.run.run import CORPUS_MANIFEST, REPORT_JSON, RUN_FILE, SCORES, SOURCE_FILE, Run

_ANY_COMMAND = "run mpa-ray audit RUN --repair: the next command writes the file again"
_NEEDED = f"{_ANY_COMMAND}. Then audit the run again, because other files could not be checked without this one"


def audit_deep(run: Run) -> list[Finding]:
    """Read all files of a run.

    Raises:
        ConfigError: the directory holds no run.
        OSError: the storage cannot be reached.
    """
    if not run.storage.exists(RUN_FILE):
        raise ConfigError("run_dir", run.storage.root, f"has no {RUN_FILE}.", "Give the directory of a run.")
    try:
        run.read_json(RUN_FILE)
        arms, models = arms_by_student(run), models_by_benchmark(run)
    except UNREADABLE as error:
        if may_pass(error):
            raise
        return [Finding(RUN_FILE, problem_of(error), _NEEDED, (set_aside(run, RUN_FILE),))]
    with Progress("audit --deep", None, "files and shards", to_stderr=True) as progress:
        parts = (
            _fingerprints(run),
            _corpus(run, list(arms), progress),
            chain.from_iterable(_parity(run, student, progress) for student in arms),
            chain.from_iterable(_benchmark(run, name, of, progress) for name, of in models.items()),
            student_findings(run, arms, progress),
            _derived(run),
        )
        # Two arms may share a file.
        return list({finding.path: finding for finding in chain.from_iterable(parts)}.values())


def _corpus(run: Run, students: list[str], progress: Progress) -> Iterator[Finding]:
    yield from json_finding(run, CORPUS_MANIFEST, None, set_aside(run, CORPUS_MANIFEST), read=_manifest_reader(run))
    remedy = f"{SAME_COMMAND}. If the images have moved, give their first place in source.path once"
    yield from json_finding(run, SOURCE_FILE, remedy, set_aside(run, SOURCE_FILE))
    # D_PI is exported only if the corpus was complete.
    if not run.is_indexed() and any(map(run.is_identified, students)):
        yield Finding(CORPUS_MANIFEST, "it is missing", "run the same command: it makes the file again")
    verdicts = list(map(run.verdicts, students))
    # Without the manifest, the index lists the missing images again.
    repair = set_aside(run, CORPUS_MANIFEST)
    yield from audit_of(run, run.corpus, "corpus", [run.annotations], repair).findings(progress)
    yield from audit_of(run, run.annotations, "corpus", verdicts).findings(progress)
    for student, dataset in zip(students, verdicts, strict=True):
        has_exports = run.is_identified(student)
        yield from audit_of(run, dataset, "corpus", has_exports=has_exports).findings(progress)


def audit_of(
    run: Run,
    dataset: ShardedDataset[Any],
    folder: str,
    dependents: list[ShardedDataset[Any]] | None = None,
    *repairs: Callable[[], None],
    has_exports: bool = False,
) -> DatasetAudit:
    """Describe the audit of a dataset whose shards the manifest in a folder names."""
    try:
        shards = run.manifest(folder).shards
    except (ConfigError, TypeError, ValueError):
        shards = dataset.committed()
    return DatasetAudit(dataset, shards, dependents or [], has_exports, repairs)


def _manifest_reader(run: Run) -> Callable[[str], Any]:
    def read(path: str) -> Any:
        run.read_json(path)
        return run.manifest(path.rpartition("/")[0]).shards

    return read


def _parity(run: Run, student: str, progress: Progress) -> Iterator[Finding]:
    first = run.parity_dir(student)
    names = list(run.storage.list(f"{first}/rematch"))
    for path in names:
        yield from json_finding(run, path, None, set_aside(run, path))
    # Earlier versions did not record the names of these folders.
    others = {*(path.removesuffix(".json") for path in names), *(run.rematch_dir(student, name) for name in MATCHERS)}
    for folder in (first, *sorted(others)):
        manifest = run.manifest_path(folder)
        repair = set_aside(run, manifest)
        yield from json_finding(run, f"{folder}/changes.json", None, repair, set_aside(run, f"{folder}/changes.json"))
        damaged = list(json_finding(run, manifest, None, repair))
        yield from damaged
        if damaged or not run.storage.exists(manifest):
            continue
        content = run.read_json(manifest)
        progress.advance(1)
        for damage in damaged_files(run.storage, folder, content):
            yield Finding(damage.path, damage.problem, repairs=(repair,))
        if FILES not in content and not run.storage.exists(f"{folder}/parity.parquet"):
            yield Finding(f"{folder}/parity.parquet", "it is missing", repairs=(repair,))


def _benchmark(run: Run, benchmark: str, models: list[str], progress: Progress) -> Iterator[Finding]:
    folder = run.benchmark_dir(benchmark)
    manifest = run.manifest_path(folder)
    # Without the manifest, the benchmark's missing questions are read again.
    repair = set_aside(run, manifest)
    yield from json_finding(run, manifest, None, repair, read=_manifest_reader(run))
    predictions = [run.predictions(benchmark, model) for model in models]
    if not run.has_manifest(folder) and any(dataset.markers.listed() for dataset in predictions):
        yield Finding(manifest, "it is missing", "run the same command: it makes the file again")
    questions = audit_of(run, run.questions(benchmark), folder, predictions, repair)
    yield from questions.findings(progress)
    for dataset in predictions:
        yield from audit_of(run, dataset, folder).findings(progress)


def _derived(run: Run) -> Iterator[Finding]:
    """Files that commands write anew from others: scores, the report, records of phases and of deaths."""
    for path in (SCORES, REPORT_JSON):
        yield from json_finding(run, path, None, set_aside(run, path))
    for path in run.storage.list(PHASES):
        remedy = "run mpa-ray audit RUN --repair: the time of one attempt at the phase is lost"
        yield from json_finding(run, path, remedy, _forget_attempt(run, path))
    for path in run.storage.list(LOGS):
        if path.endswith(".json"):
            remedy = "run mpa-ray audit RUN --repair: the record of one process that died is lost"
            yield from json_finding(run, path, remedy, set_aside(run, path))


def _forget_attempt(run: Run, path: str) -> Callable[[], None]:
    # The files of a record are numbered, and none may be missing.
    def repair() -> None:
        set_aside(run, path)()
        run.write_json(path, PhaseRecord(0.0, num_attempts=0).to_json())

    return repair


def _fingerprints(run: Run) -> Iterator[Finding]:
    """Compare the fingerprints with the digests of them that markers hold."""
    copies = run.read_json(RUN_FILE).get("fingerprints", {})
    names = {name_of(path) for path in run.storage.list(FINGERPRINTS)}
    for name in sorted(names.union(copies)):
        expected = next((digest for digest in _digests_in_markers(run, name)), "")
        path = path_of(name)
        try:
            actual = run.fingerprints.digest(name)
        except UNREADABLE as error:
            problem = problem_of(error)
        else:
            if actual == expected or not expected:
                continue
            problem = "its content does not have the digest in the markers" if actual else "it is missing"
        copy = copies.get(name)
        if expected and isinstance(copy, dict) and digest_of(copy) == expected:
            remedy = "run mpa-ray audit RUN --repair: run.json has a copy"
            yield Finding(path, problem, remedy, (_restore(run, path, copy),))
        else:
            yield Finding(path, problem, RESTORE)


def _digests_in_markers(run: Run, name: str) -> Iterator[str]:
    for folder in (name, f"{name}/epoch"):
        markers = Markers(run.storage, folder)
        for shard in markers.listed()[:1]:
            yield from (commit.fingerprint for commit in markers.history(shard) if commit.fingerprint)


def _restore(run: Run, path: str, copy: Fingerprint) -> Callable[[], None]:
    def repair() -> None:
        set_aside(run, path)()
        run.storage.create(path, content_of(copy))

    return repair
