"""One trial: a run with faults, continued to its end, and counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from benchmarks.chaos_course import Course, drive_to_the_end
from benchmarks.chaos_damage import results_of
from benchmarks.chaos_faults import (
    DATASETS,
    IDENTIFYING,
    DriverKill,
    Fault,
    Injection,
    Interrupt,
    Reference,
    Scene,
    Start,
)
from benchmarks.chaos_leveling import LARGEST_DISTANCE, TRAINING, distance
from benchmarks.chaos_poison import Poison
from benchmarks.chaos_recount import names_in, open_files, read_rows, recount
from benchmarks.chaos_results import Ended, InjectedFault, Trial
from benchmarks.chaos_testbed import IMAGES, STUDENT, Testbed, deep_merge
from mpa_ray.run.run import Run

SHARDS_PER_ACTOR = 2
"""How many shards `pipeline/graph.py` gives to one actor at a time, with so few images in flight."""
UNDISTURBED = "undisturbed"
LEVELED = "leveled"
_MAY_DIFFER = ("attempts", "mean_logprob")
"""Columns of verdicts that may differ between runs."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError)
"""What a reader without checks raises for a damaged file."""

Row = Mapping[str, Any]


Finish = Callable[[Scene, Sequence[str]], None]


def finish_with_a_driver(scene: Scene, jobs: Sequence[str]) -> None:
    """Run jobs to their end. Raises RuntimeError if they fail."""
    with scene.testbed.driver(scene.folder, "driver", jobs) as driver:
        driver.wait(timeout=scene.testbed.setting.driver_timeout_s)
    if driver.returncode:
        raise RuntimeError(f"{scene.name} failed: {(scene.folder / 'driver.err').read_text()}")


class Trials:
    """Makes trials with one testbed. Undisturbed runs are made when a trial first needs them."""

    def __init__(self, testbed: Testbed, finish: Finish | None = None) -> None:
        """Make the undisturbed run.

        Args:
            testbed: What the trials share.
            finish: Runs jobs without faults; by default, a driver does.
        """
        self._testbed = testbed
        self._finish = finish or finish_with_a_driver
        self._files = open_files(testbed.server_url)
        self._images = names_in(self._files, IMAGES)
        self.reference = self._run_undisturbed()
        self._leveled: Run | None = None

    def run(self, number: int, faults: Sequence[Fault]) -> Trial:
        """Make a new run with these faults, continue it to its end, and count."""
        started = time.monotonic()
        testbed = self._testbed
        testbed.proxy.reset()
        scene = self._scene(f"trial-{number}")
        self._copy_start(scene, max((fault.start for fault in faults), key=list(Start).index))
        settings = deep_merge({}, *(fault.settings(scene) for fault in faults))
        testbed.configure(scene.folder, testbed.proxy.url, settings)
        for fault in faults:
            fault.prepare(scene)
        testbed.cluster.wait_until_whole()
        jobs = list(dict.fromkeys(job for fault in faults for job in fault.jobs))
        course = drive_to_the_end(scene, faults, jobs)
        testbed.proxy.reset()
        expected = self.reference.verdicts
        for fault in faults:
            expected = fault.expected(Reference(expected, self.reference.shard_of))
        damage = self._check_damage(scene, course, jobs)
        return self._count(number, scene, faults, course, expected, damage, started)

    def _scene(self, name: str) -> Scene:
        folder = self._testbed.make_folder(name)
        reference = self.reference if name != UNDISTURBED else Reference({}, {})
        return Scene(self._testbed, folder, self._testbed.open_run(name), reference)

    def _run_undisturbed(self) -> Reference:
        """Run without faults, and without the proxy in between."""
        scene = self._scene(UNDISTURBED)
        self._testbed.configure(scene.folder, self._testbed.server_url, {})
        self._finish(scene, IDENTIFYING)
        _, verdicts = recount(self._files, f"{UNDISTURBED}/run", STUDENT, self._images)
        shard_of = {
            ref.image_id: shard for shard in scene.run.manifest().shards for ref in scene.run.corpus.read(shard)
        }
        return Reference(_comparable(verdicts), shard_of)

    def leveled(self) -> Run:
        """The undisturbed run with its student trained."""
        if self._leveled is None:
            scene = self._scene(LEVELED)
            self._testbed.copy_run(UNDISTURBED, LEVELED)
            self._testbed.configure(scene.folder, self._testbed.server_url, {})
            finish_with_a_driver(scene, ("level",))
            self._leveled = scene.run
        return self._leveled

    def _copy_start(self, scene: Scene, start: Start) -> None:
        if start is Start.IDENTIFIED:
            self._testbed.copy_run(UNDISTURBED, scene.name)
        elif start is Start.LEVELED:
            self.leveled()
            self._testbed.copy_run(LEVELED, scene.name)

    # --- damage ------------------------------------------------------------------------------------------------------

    def _check_damage(self, scene: Scene, course: Course, jobs: Sequence[str]) -> tuple[int, int]:
        """Repair what `audit --deep` finds, and repeat the command.

        Returns:
            The numbers of damaged files that nothing reported: of those that changed a result, and of harmless ones.
        """
        if not scene.damaged:
            return 0, 0
        reported = [ended for ended in course.ended if any(path in ended.line for path in scene.damaged)]
        is_changed = self._is_changed(scene)
        found = [str(finding["file"]) for finding in scene.audit("--deep").get("damage", ())]
        if found:
            action = scene.repair()
            course.is_finished = False
            again = drive_to_the_end(scene, (), jobs, first=course.num_restarts + 1)
            course.ended += [Ended(1, f"audit --deep: {', '.join(found)}", action), *again.ended]
            course.is_finished, course.num_restarts = again.is_finished, again.num_restarts
        is_noticed = bool(reported or set(found) & set(scene.damaged))
        return int(is_changed and not is_noticed), int(not is_changed and not is_noticed)

    def _is_changed(self, scene: Scene) -> bool:
        """Whether a result differs from that of the undisturbed run, or cannot be read."""
        is_trained = scene.run.storage.exists(f"{TRAINING}/complete.json")
        try:
            results = results_of(self._files, f"{scene.name}/run")
        except _UNREADABLE:
            return True
        return results != results_of(self._files, f"{LEVELED if is_trained else UNDISTURBED}/run")

    def _num_differing(self, scene: Scene, expected: Mapping[str, Row]) -> int:
        """Verdicts that differ from the expected ones, and 1 if a trained student does; 1 if rows cannot be read."""
        try:
            rows, _ = read_rows(self._files, f"{scene.name}/run", f"verdicts/{STUDENT}")
        except _UNREADABLE:
            return 1
        verdicts = _comparable(rows)
        names = verdicts.keys() | expected.keys()
        return sum(not _is_same(verdicts.get(name), expected.get(name)) for name in names) + self._student_differs(
            scene
        )

    def _student_differs(self, scene: Scene) -> bool:
        if not scene.run.storage.exists(f"{TRAINING}/complete.json"):
            return False
        try:
            return distance(scene.run, self.leveled()) > LARGEST_DISTANCE
        except _UNREADABLE:
            return True

    # --- counting ----------------------------------------------------------------------------------------------------

    def _count(
        self,
        number: int,
        scene: Scene,
        faults: Sequence[Fault],
        course: Course,
        expected: Mapping[str, Row],
        damage: tuple[int, int],
        started: float,
    ) -> Trial:
        try:
            counts, _ = recount(self._files, f"{scene.name}/run", STUDENT, self._images)
        except _UNREADABLE as error:
            counts = {"lost": len(self._images), "doubled": 0, "mixed": 0, "error": str(error)}
        happened, num_needless, redone = _redone(scene, course)
        audited = scene.audit("--deep")
        damaged = [f"{finding['file']}: {finding['problem']}" for finding in audited.get("damage", ())]
        return Trial(
            number=number,
            kinds=[fault.kind for fault in faults],
            faults=happened,
            is_finished=course.is_finished,
            ended=course.ended,
            num_lost=counts["lost"],
            num_doubled=counts["doubled"],
            num_mixed=counts["mixed"],
            num_differing=self._num_differing(scene, expected),
            num_unnoticed=damage[0],
            num_harmless=damage[1],
            recount=counts,
            num_redone_shards=redone[0],
            num_redone_images=redone[1],
            num_needless=num_needless,
            num_extra_files=_num_extra_files(scene),
            num_restarts=course.num_restarts,
            problems=[*audited["problems"], *damaged],
            elapsed_s=round(time.monotonic() - started, 1),
        )


def _comparable(rows: Sequence[Row]) -> dict[str, Row]:
    return {
        str(row["annotation_id"]): {name: value for name, value in row.items() if name not in _MAY_DIFFER}
        for row in rows
    }


def _is_same(row: Row | None, expected: Row | None) -> bool:
    """Whether a row has the expected values. The expected row may have fewer columns."""
    if row is None or expected is None:
        return row is expected
    return all(row.get(name) == value for name, value in expected.items())


def _num_extra_files(scene: Scene) -> int:
    files = Counter(
        folder
        for key in scene.testbed.files_of(scene.name)
        for dataset in DATASETS.values()
        for folder in ("data", "commits", "generations")
        if key.startswith(f"run/{dataset}/{folder}/")
    )
    return files["data"] - files["commits"] - files["generations"]


def _redone(scene: Scene, course: Course) -> tuple[list[InjectedFault], int, tuple[int, int]]:
    """The faults that happened, the shards that were redone without need, and those redone at all, with images."""
    uncommitted = [scene.uncommitted_of(injection) for injection in course.injections]
    happened = [
        _happened(injection, len(shards)) for injection, shards in zip(course.injections, uncommitted, strict=True)
    ]
    if any(isinstance(injection.fault, Poison) for injection in course.injections):
        # Shards have other images.
        return happened, 0, (0, 0)
    shards, num_images = _begun_again(scene)
    if not happened or not all(fault.is_kill for fault in happened):
        return happened, 0, (shards.total(), num_images)
    explained = Counter(shard for shards_of_one in uncommitted for shard in shards_of_one)
    num_in_flight = sum(fault.num_in_flight for fault in happened)
    return happened, max((shards - explained).total(), shards.total() - num_in_flight), (shards.total(), num_images)


def _happened(injection: Injection, num_uncommitted: int) -> InjectedFault:
    fault = injection.fault
    num_actors = len(injection.pids)
    is_of_driver = isinstance(fault, DriverKill | Interrupt)
    most_in_flight = num_uncommitted if is_of_driver else SHARDS_PER_ACTOR * num_actors
    num_in_flight = min(num_uncommitted, most_in_flight) if fault.is_kill else 0
    return InjectedFault(fault.kind, injection.moment, fault.is_kill, num_actors, num_in_flight)


def _begun_again(scene: Scene) -> tuple[Counter[tuple[str, str]], int]:
    """How often each shard was begun again in another process, and the visits to images beyond the first of each."""
    shards: Counter[tuple[str, str]] = Counter()
    num_images = 0
    for phase in DATASETS:
        visits = scene.visits(phase)
        begun = {(visit.pid, scene.reference.shard_of[visit.image_id]) for visit in visits}
        shards.update((phase, shard) for _, shard in begun)
        num_images += len(visits) - len({visit.image_id for visit in visits})
    return shards - Counter(shards.keys()), num_images
