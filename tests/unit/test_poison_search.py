"""The search for images that kill engines, against a simulated engine, with drivers that end at random moments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from mpa_ray.config import LimitsConfig
from mpa_ray.pipeline.coordination.attempts import Attempts
from mpa_ray.pipeline.coordination.poison_search import NUM_PARTS, PoisonSearch
from mpa_ray.run.suspects import Suspects
from mpa_ray.stages.visits import Attempt

LIMITS = LimitsConfig()


class DriverEnds(Exception):
    """The driver is killed."""


class GivenUp(Exception):
    """A shard is not visited any more."""


@dataclass
class Simulation:
    """Engines that die as scripted, one after the other, and drivers that visit shards in them.

    As `Visits` does, an engine first answers the probe, visits a random part of its shards' images among others, and
    then visits one shard's suspects in groups.
    """

    shards: dict[str, list[str]]
    poison: set[str]
    random: Random
    limits: LimitsConfig = LIMITS
    reports: float = 1.0
    """Share of deaths that are reported."""
    num_slots: int = 64
    death_rate: float = 0.0
    """Share of visits that kill an engine whatever the image."""
    driver_death_rate: float = 0.0
    loss_rate: float = 0.0
    """Share of engines that are taken away with their nodes."""
    probe_kills: bool = False
    saved: dict[str, Suspects] = field(default_factory=dict)
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    num_deaths: int = 0
    num_deaths_of_drivers: int = 0
    num_engines: int = 0

    def run(self, max_deaths: int = 10_000) -> None:
        """Visit all shards with as many drivers as it takes."""
        while len(self.rows) < len(self.shards):
            try:
                self._drive(max_deaths)
            except DriverEnds:
                self.num_deaths_of_drivers += 1

    def _drive(self, max_deaths: int) -> None:
        attempts = Attempts(self.limits, self.random)
        for shard, suspects in self.saved.items():
            attempts.learn(shard, Suspects.from_json(suspects.to_json()))
        while left := [name for name in self.shards if name not in self.rows]:
            self.num_engines += 1
            assert self.num_deaths <= max_deaths
            engine = self.num_engines
            in_flight = self._visit(attempts, engine, left[:3])
            if in_flight is None:
                continue
            was_taken_away = self.random.random() < self.loss_rate
            self.num_deaths += not was_taken_away
            reported = in_flight if self.random.random() < self.reports else None
            self._maybe_end_driver()
            for shard in attempts.bury(engine, reported, "a death", was_taken_away):
                self.saved[shard] = attempts.knowledge(shard)
            self._maybe_end_driver()

    def _maybe_end_driver(self) -> None:
        if self.random.random() < self.driver_death_rate:
            raise DriverEnds

    def _visit(self, attempts: Attempts, engine: int, shards: list[str]) -> dict[str, list[str]] | None:
        """Visit shards in an engine. Returns the images that are in it when it dies; None if it survives."""
        begun = {shard: attempts.begin(shard, engine, self.shards[shard]) for shard in shards}
        for attempt in begun.values():
            if attempt.given_up is not None:
                raise GivenUp(attempt.given_up, attempt.is_engine_fault)
        if any(attempt.needs_probe for attempt in begun.values()):
            attempts.begin_probe(engine)
            if self.probe_kills:
                return {}
            attempts.end_probe(engine)
        others = [
            (shard, name)
            for shard, attempt in begun.items()
            for name in self.shards[shard]
            if name not in attempt.suspects and name not in attempt.quarantined
        ]
        if (died := self._dies_of(others)) is not None:
            return died
        for shard, attempt in begun.items():
            if attempt.suspects and (died := self._visit_groups(attempts, shard, engine)) is not None:
                return died
            attempts.report_visited(shard, engine)
            self.rows[shard] = self._rows_of(shard, attempt)
            attempts.forget(shard)
            self.saved.pop(shard, None)
        return None

    def _visit_groups(self, attempts: Attempts, shard: str, engine: int) -> dict[str, list[str]] | None:
        while group := attempts.next_group(shard, engine):
            self.saved[shard] = attempts.knowledge(shard)
            self._maybe_end_driver()
            if (died := self._dies_of([(shard, name) for name in group])) is not None:
                return died
        return None

    def _dies_of(self, images: Sequence[tuple[str, str]]) -> dict[str, list[str]] | None:
        for start in range(0, len(images), self.num_slots):
            together = images[start : start + self.num_slots]
            is_dead = any(name in self.poison or self.random.random() < self.death_rate for _, name in together)
            if is_dead:
                died: dict[str, list[str]] = {}
                for shard, name in together:
                    died.setdefault(shard, []).append(name)
                return died
        return None

    def _rows_of(self, shard: str, attempt: Attempt) -> dict[str, str]:
        return {name: "kills_engine" if name in attempt.quarantined else "kept" for name in self.shards[shard]}

    @property
    def blamed(self) -> set[str]:
        return {name for rows in self.rows.values() for name, row in rows.items() if row == "kills_engine"}


def names(shard: str, num_images: int) -> list[str]:
    return [f"{shard}/{number:03d}" for number in range(num_images)]


def poisons(random: Random, images: list[str], number: int) -> set[str]:
    """Images at random places, or neighbours, or at equal distances."""
    kind = random.choice(("random", "neighbours", "equal"))
    if kind == "neighbours":
        start = random.randrange(len(images) - number + 1)
        return set(images[start : start + number])
    return set(images[:: len(images) // number][:number] if kind == "equal" else random.sample(images, number))


@pytest.mark.parametrize("num_images", [64, 256])
@pytest.mark.parametrize(("number", "most"), [(1, 5), (4, 18), (16, 60)])
@pytest.mark.parametrize("reports", [0.0, 1.0])
def test_images_that_kill_engines_cost_few_engines(num_images: int, number: int, most: int, reports: float) -> None:
    """The number does not depend on their positions in the shard."""
    counts = []
    for seed in range(60):
        random = Random(seed)
        images = names("a", num_images)
        simulation = Simulation({"a": images}, poisons(random, images, number), random, reports=reports)
        simulation.run()
        assert simulation.blamed == simulation.poison
        assert simulation.num_engines == simulation.num_deaths + 1
        counts.append(simulation.num_deaths)
    assert max(counts) <= most


@pytest.mark.parametrize("seed", range(400))
def test_exactly_the_images_that_kill_engines_are_blamed(seed: int) -> None:
    """Several shards, silent deaths, drivers that end at random moments, and nodes that are lost."""
    random = Random(seed)
    shards = {shard: names(shard, random.choice((1, 5, 17, 64, 256))) for shard in "abcd"[: random.randint(1, 4)]}
    poison = set()
    for images in shards.values():
        poison |= poisons(random, images, random.randint(1, min(16, len(images)))) if random.random() < 0.7 else set()
    simulation = Simulation(
        shards,
        poison,
        random,
        reports=random.choice((0.0, 0.5, 1.0)),
        num_slots=random.choice((1, 8, 64)),
        driver_death_rate=random.choice((0.0, 0.02, 0.1)),
        loss_rate=random.choice((0.0, 0.1)),
    )
    simulation.run()
    assert simulation.blamed == poison
    assert {shard: list(rows) for shard, rows in simulation.rows.items()} == shards
    # A driver that ends loses one death at most: the one that it was about to record.
    num_images = sum(map(len, shards.values()))
    bound = num_images / simulation.num_slots + len(poison) * (2 + 4) + 3 * len(shards)
    assert simulation.num_deaths <= bound + simulation.num_deaths_of_drivers


@pytest.mark.parametrize("seed", range(100))
def test_a_driver_ends_after_a_bounded_number_of_deaths_whatever_kills_engines(seed: int) -> None:
    random = Random(seed)
    images = names("a", random.choice((3, 64, 256)))
    limits = LIMITS.model_copy(update={"max_engine_deaths": 3, "max_poison_images": random.choice((0, 16, 300))})
    simulation = Simulation(
        {"a": images},
        set(images) if random.random() < 0.3 else set(),
        random,
        limits,
        reports=random.choice((0.0, 0.5, 1.0)),
        death_rate=random.choice((0.001, 0.05, 0.5, 1.0)),
    )
    num, unexplained, kills = len(images), limits.max_engine_deaths, limits.max_image_deaths
    try:
        simulation.run(max_deaths=unexplained + num + (unexplained + 1) * (num - 1) + num * kills)
    except GivenUp:
        assert not simulation.rows


def test_an_engine_that_dies_of_everything_but_the_probe_blames_no_image_and_ends_soon() -> None:
    for seed in range(50):
        images = names("a", 256)
        simulation = Simulation({"a": images}, set(images), Random(seed), reports=seed % 2)
        with pytest.raises(
            GivenUp, match=r"each of 6 images of shard a killed engines and no image was visited"
        ) as end:
            simulation.run()
        assert end.value.args[1] is True
        assert simulation.num_deaths <= 26


def test_an_engine_that_cannot_answer_the_probe_blames_no_image() -> None:
    simulation = Simulation({"a": names("a", 64)}, set(names("a", 64)[:3]), Random(0), probe_kills=True)
    with pytest.raises(GivenUp, match=r"its successors die of a built-in test picture.*no image.*: a death") as end:
        simulation.run()
    assert end.value.args[1] is True
    assert simulation.num_deaths == 3
    assert not any(suspects.num_kills for suspects in simulation.saved.values())


def test_more_images_than_the_limit_end_the_run_and_a_higher_limit_continues_it() -> None:
    images = names("a", 256)
    simulation = Simulation({"a": images}, set(images[40:60]), Random(1))
    with pytest.raises(GivenUp, match=r"17 images of shard a killed engines, more than limits.max_poison_images = 16"):
        simulation.run()
    num_deaths = simulation.num_deaths
    simulation.limits = LIMITS.model_copy(update={"max_poison_images": 20})
    simulation.run()
    assert simulation.blamed == simulation.poison
    assert simulation.num_deaths - num_deaths <= 3 * 2 + 2


def test_lost_nodes_blame_no_image_and_do_not_count() -> None:
    limits = LIMITS.model_copy(update={"max_engine_deaths": 1, "max_image_deaths": 1})
    attempts = Attempts(limits, Random(0))
    attempts.learn("a", Suspects(groups=(("a/0",),)))
    for engine in range(50):
        assert attempts.begin("a", engine, ["a/0", "a/1"]).given_up is None
        attempts.begin_probe(engine)
        if engine % 2:
            attempts.end_probe(engine)
            assert attempts.next_group("a", engine) == ("a/0",)
        assert attempts.bury(engine, None, "its node has ended", was_taken_away=True) == []
    assert attempts.knowledge("a") == Suspects(groups=(("a/0",),), has_survivor=True)
    for engine in range(50, 100):
        assert attempts.begin("a", engine, ["a/0"]).given_up is None
        attempts.bury(engine, None, "its node has ended", was_taken_away=True)
    given_up = attempts.begin("a", 100, ["a/0"])
    assert given_up.given_up == (
        "100 engines were ended from outside while they visited shard a, the last time with: its node has ended"
    )
    assert given_up.is_engine_fault


def test_other_shards_of_an_engine_that_a_group_killed_are_not_suspected() -> None:
    for in_flight in (None, {"a": ["a/000"], "b": []}):
        attempts = Attempts(LIMITS, Random(0))
        attempts.learn("a", Suspects(groups=(("a/000", "a/001"),)))
        for shard in "ab":
            attempts.begin(shard, "engine", names(shard, 3))
        attempts.next_group("a", "engine")
        assert attempts.bury("engine", in_flight, "a death", was_taken_away=False) == ["a"]
        assert attempts.knowledge("b").is_empty


def test_a_death_that_only_cleared_images_can_have_caused_counts() -> None:
    search = PoisonSearch(2, Suspects(cleared=frozenset("abc")), Random(0))
    search.begin(list("abc"))
    search.die_among_others({"a", "b"}, is_only_shard=True)
    assert search.num_unexplained == 1
    assert search.suspects == {"a", "b"}
    search.begin(list("abc"))
    search.die_in_group(("a",), None)
    assert (search.num_unexplained, search.knowledge.num_kills) == (1, {"a": 1})


def test_a_death_of_an_engine_that_held_one_image_is_a_kill() -> None:
    search = PoisonSearch(2, Suspects(), Random(0))
    search.begin(list("abc"))
    search.die_among_others({"b"}, is_only_shard=True)
    assert (search.knowledge.num_kills, search.quarantined) == ({"b": 1}, {})
    search.begin(list("abc"))
    assert search.next_group() == ("b",)
    search.die_in_group(("b",), None)
    assert search.quarantined == {"b": 2}
    assert search.has_survivor


@pytest.mark.parametrize(("in_engine", "is_only_shard"), [({"b"}, False), (None, True), ({"a", "b"}, True)])
def test_a_death_of_an_engine_that_may_have_held_more_images_is_no_kill(
    in_engine: set[str] | None, is_only_shard: bool
) -> None:
    search = PoisonSearch(2, Suspects(), Random(0))
    search.begin(list("abc"))
    search.die_among_others(in_engine, is_only_shard)
    assert search.knowledge.num_kills == {}
    assert search.suspects == (in_engine or set("abc"))


def test_the_last_kill_of_an_image_is_in_an_otherwise_empty_engine() -> None:
    search = PoisonSearch(1, Suspects(), Random(0))
    search.begin(list("abc"))
    search.die_among_others({"b"}, is_only_shard=True)
    assert (search.quarantined, search.suspects) == ({}, {"b"})


def test_images_that_only_kill_an_engine_together_are_not_blamed() -> None:
    """For example, an engine has enough memory for one large image, but not for two."""
    search = PoisonSearch(2, Suspects(), Random(0))
    images = names("a", 64)
    search.begin(images)
    search.die_among_others(images, is_only_shard=True)
    search.begin(images)
    num_groups = 0
    while group := search.next_group():
        search.survive(group)
        num_groups += 1
    assert (num_groups, search.quarantined, search.knowledge.cleared) == (NUM_PARTS, {}, set(images))


def test_groups_are_disjoint_and_hold_every_suspect() -> None:
    def in_groups(groups: Sequence[Sequence[str]]) -> Mapping[str, int]:
        return Counter(name for group in groups for name in group)

    random = Random(3)
    search = PoisonSearch(2, Suspects(), random)
    images = names("a", 100)
    for _ in range(200):
        search.begin(images)
        if not (group := search.next_group()) or random.random() < 0.2:
            search.die_among_others(random.sample(images, 10), is_only_shard=random.random() < 0.5)
        elif random.random() < 0.5:
            search.die_in_group(group, random.choice((None, group[:1], group)))
        else:
            search.survive(group)
        counts = in_groups(search.knowledge.groups)
        assert set(counts.values()) <= {1}
        assert not counts.keys() & (search.knowledge.cleared | search.quarantined.keys())
