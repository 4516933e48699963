"""GQA: questions about photographs, generated from scene graphs."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.file import PARQUET
from mpa_ray.evaluation.benchmarks.finding import find_files, holds_parquet
from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion

_FIELDS = ("id", "imageId", "question", "answer", "types")


def read_gqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read questions. A question's family is its structural type: verify, query, choose, logical or compare."""
    mirrored = _mirrored_images(inputs)
    for record in inputs.records(None, _FIELDS):
        image_id = record.text("imageId")
        if mirrored is not None and image_id not in mirrored:
            raise ConfigError(
                "benchmark.images",
                inputs.spec.images,
                f"has no image {image_id!r} for question {record.text('id')!r}.",
                "Give the images of the same split.",
            )
        yield LabelledQuestion(
            question_id=record.text("id"),
            image_id=image_id,
            uri=mirrored[image_id]
            if mirrored
            else inputs.images.uri(record, f"{image_id}.jpg", f"images/{image_id}.jpg"),
            question=record.text("question"),
            answers=record.answers("answer"),
            family=_family(record),
        )


def _mirrored_images(inputs: Inputs) -> dict[str, str] | None:
    """The locators of a mirror's images, by image id; None if the images are separate files in a folder."""
    path = inputs.spec.images
    if path is None and inputs.files[0].is_parquet:
        path = inputs.spec.path.replace("_instructions", "_images")
        if path == inputs.spec.path:
            raise ConfigError(
                "benchmark.images",
                None,
                "is missing, and this mirror keeps its images in other files.",
                "Give the Parquet files with the images.",
            )
    if path is None or not holds_parquet(inputs.places, path, "benchmark.images"):
        return None
    locators = {}
    for file in find_files(inputs.places, path, inputs.spec.split, "benchmark.images", PARQUET):
        for row, (values, uri) in enumerate(file.rows(("id",), "image")):
            if uri is None or values.get("id") is None:
                raise file.error(f"row {row} has no 'id' or no 'image'.", "Check that the file holds GQA's images.")
            locators[str(values["id"])] = uri
    return locators


def _family(record: Record) -> str:
    types = record.get("types")
    return str((isinstance(types, dict) and types.get("structural")) or "all")
