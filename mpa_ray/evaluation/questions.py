"""Read a labelled set and lay it out in shards, all questions on an image together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mpa_ray.config import EvaluateConfig, resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.records import LabelledQuestion
from mpa_ray.store.dataset import shard_name
from mpa_ray.store.run import Manifest, Run

_FIELDS = {"question_id": str, "image": str, "question": str, "answers": list, "family": str}


def load_questions(config: EvaluateConfig) -> list[LabelledQuestion]:
    """The set's questions, ordered by image.

    Raises:
        ConfigError: the file, a field or an image is missing, a field has another type, or an id occurs twice.
    """
    path = Path(resolve_path(config.questions))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(config, f"cannot be read ({error}).", "Give a JSONL file in UTF-8.") from error
    questions = [_parse(config, path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise _refused(config, "holds no questions.", "Give a file with a question on each line.")
    doubled = [q for q, n in Counter(q.question_id for q in questions).items() if n > 1]
    if doubled:
        raise _refused(config, f"has question_id {doubled[0]!r} twice.", "Make the ids unique.")
    return sorted(questions, key=lambda q: (q.image_id, q.question_id))


def _parse(config: EvaluateConfig, path: Path, number: int, line: str) -> LabelledQuestion:
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise _refused(config, f"line {number} is not JSON ({error.msg}).", "Mend the line.") from None
    if not isinstance(row, dict):
        raise _refused(config, f"line {number} is not an object.", "Give all five fields.")
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):
            raise _refused(config, f"line {number}: {name} is not a {kind.__name__}.", "Give all five fields.")
    image = path.parent / row["image"]
    if not image.is_file():
        raise _refused(config, f"line {number}: there is no image {image}.", "Paths are relative to the file.")
    return LabelledQuestion(
        question_id=row["question_id"],
        image_id=row["image"],
        uri=str(image.absolute()),
        question=row["question"],
        answers=[str(a) for a in row["answers"]],
        family=row["family"],
    )


def _refused(config: EvaluateConfig, problem: str, remedy: str) -> ConfigError:
    return ConfigError("evaluate.questions", config.questions, problem, remedy)


def shard_questions(questions: list[LabelledQuestion], shard_size: int, run: Run) -> Manifest:
    """Commit the questions in shards of about `shard_size`; a set that is already there is left as it is."""
    folder = "evaluation/questions"
    if not run.storage.exists(f"{folder}/manifest.json"):
        shards = list(_shards(questions, shard_size))
        for index, shard in enumerate(shards):
            run.questions().commit(shard_name(index), shard)
        num_images = len({q.image_id for q in questions})
        run.write_json(f"{folder}/manifest.json", {"num_images": num_images, "num_shards": len(shards)})
    return run.manifest(folder)


def _shards(questions: list[LabelledQuestion], size: int) -> Iterator[list[LabelledQuestion]]:
    shard: list[LabelledQuestion] = []
    for _, found in groupby(questions, key=lambda q: q.image_id):
        shard += found
        if len(shard) >= size:
            yield shard
            shard = []
    if shard:
        yield shard
