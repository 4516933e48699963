"""GQA: questions on scene graphs of photographs."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.finding import find_files, holds_parquet
from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion

_FIELDS = ("id", "imageId", "question", "answer", "types")


def read_gqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Families are the structural types: verify, query, choose, logical and compare."""
    held = _held_images(inputs)
    for record in inputs.records(None, _FIELDS):
        image_id = record.text("imageId")
        if held is not None and image_id not in held:
            raise ConfigError(
                "benchmark.images",
                inputs.spec.images,
                f"has no image {image_id!r}, which question {record.text('id')!r} is about.",
                "Give the images of the same split.",
            )
        yield LabelledQuestion(
            question_id=record.text("id"),
            image_id=image_id,
            uri=held[image_id] if held else inputs.images.uri(record, f"{image_id}.jpg", f"images/{image_id}.jpg"),
            question=record.text("question"),
            answers=record.answers("answer"),
            family=_family(record),
        )


def _held_images(inputs: Inputs) -> dict[str, str] | None:
    """The locators of the mirror's images by their ids; None for a folder of image files."""
    path = inputs.spec.images
    if path is None and inputs.files[0].is_parquet:
        path = inputs.spec.path.replace("_instructions", "_images")
        if path == inputs.spec.path:
            raise ConfigError(
                "benchmark.images",
                None,
                "is needed, since this mirror keeps images apart.",
                "Give the Parquet files with the images.",
            )
    if path is None or not holds_parquet(inputs.places, path, "benchmark.images"):
        return None
    held = {}
    for file in find_files(inputs.places, path, inputs.spec.split, "benchmark.images", only_parquet=True):
        for row, (values, uri) in enumerate(file.rows(("id",), "image")):
            if uri is None or values.get("id") is None:
                raise file.error(f"row {row}: there is no 'id' or no 'image'.", "Check that it is GQA's images.")
            held[str(values["id"])] = uri
    return held


def _family(record: Record) -> str:
    types = record.get("types")
    return str((isinstance(types, dict) and types.get("structural")) or "all")
