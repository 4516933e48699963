"""What a user says of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark and where its files are; every path is local or at s3://."""

    kind: str
    """A key of `BENCHMARKS`."""
    path: str
    """The official file with the questions, or a Parquet mirror: a file, a folder or a glob. Of GQA's mirror, the
    instructions."""
    images: str | None = None
    """The folder that holds the image files; None is the folder of `path`'s file. Of GQA's mirror, the Parquet files
    with the images. Where a Parquet file holds its images itself, it is not looked at."""
    annotations: str | None = None
    """VQA's and OK-VQA's second file; None is the file beside `path` with its official name."""
    split: str | None = None
    """Train, val, test or the like: chooses among the files of a folder, and goes into ids that are made up and into
    COCO's file names. None goes by the files' names."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of kind `questions`: the fields for `id`, `image`, `question`, `answers`, `family`, `answer_type`, `split` and
    `image_id` where they are named otherwise."""
