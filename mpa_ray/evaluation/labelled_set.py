"""A labelled set of a run, and the setting that describes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from mpa_ray.config import BenchmarkConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import check_images, labelled_files, read_benchmark
from mpa_ray.evaluation.labelled_identity import labelled_identity
from mpa_ray.records import LabelledQuestion, ParitySample
from mpa_ray.run.fingerprint_changes import Fingerprint

_BRANCH = "benchmark"
"""In the errors of the benchmarks' readers, this name stands for the branch of the configuration that describes the
labelled set."""


@dataclass(frozen=True)
class LabelledSet:
    """A labelled set. Its errors use the names that its settings have in the user's configuration."""

    benchmark: BenchmarkConfig
    field: str
    """The branch of the configuration that describes the set, such as `evaluate.benchmarks.0`."""
    places: Places

    def check_files(self) -> None:
        """Check that the files with questions and answers exist, without reading them.

        Raises:
            ConfigError: a file does not exist, or a setting does not apply to the set's kind.
        """
        with self._own_settings():
            for file in labelled_files(self.benchmark, self.places):
                try:
                    self.places.of(file.uri).size(file.uri)
                except OSError as error:
                    raise file.error(f"cannot be read ({error.strerror or error}).", "Check the path.") from error

    def identity(self) -> Fingerprint:
        """The content of the files, and the settings with which they are read. Raises as `labelled_identity` does."""
        with self._own_settings():
            return labelled_identity(self.benchmark, self.places)

    def questions(self) -> Iterator[LabelledQuestion]:
        """Yield the first `limit` questions. Raises ConfigError as `read_benchmark` does."""
        with self._own_settings():
            yield from islice(read_benchmark(self.benchmark, self.places), self.benchmark.limit)

    def samples(self) -> Iterator[ParitySample]:
        """Yield the questions as training samples, each with its most frequent reference answer. Raises ConfigError as
        `questions` does."""
        for number, question in enumerate(self.questions()):
            answer = Counter(question.answers).most_common(1)[0][0]
            name = f"{self.benchmark.label}:{number}:{question.question_id}"
            yield ParitySample(name, question.image_id, question.uri, question.question, answer, student_answer="")

    def check_images(self, questions: Iterable[LabelledQuestion]) -> None:
        """Check that all local images of questions exist. Raises ConfigError if files are missing."""
        with self._own_settings():
            check_images(questions)

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            named = error.with_field(f"{_BRANCH}.{self._setting_of(error.value)}") if error.field == "uri" else error
            raise named.with_branch(_BRANCH, self.field) from error

    def _setting_of(self, uri: object) -> str:
        """Return the name of the setting whose path contains a URI."""
        for setting, value in (("images", self.benchmark.images), ("annotations", self.benchmark.annotations)):
            if value is not None and str(uri).startswith(value):
                return setting
        return "path"
