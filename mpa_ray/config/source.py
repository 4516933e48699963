"""Where images come from, how they are read, and how object stores are reached."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mpa_ray.config.settings import Settings


class SourceConfig(Settings):
    """Where the unlabeled images are."""

    path: str
    """A folder or prefix with images, Parquet files or tars, a glob of them, a list of URIs, or a saved `datasets`
    folder; local, at s3:// or at gs://."""
    kind: Literal["auto", "images", "list", "parquet", "webdataset", "saved_dataset"] = "auto"
    """What lies there; `auto` goes by the ending and by what a folder holds."""
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
    """File name endings, without the dot, that count as images, also in tars; an empty list takes every file."""
    image_column: str = "image"
    """Of a CSV or JSONL list, Parquet or saved dataset: holds bytes, a URI, or Hugging Face's struct of both."""
    id_column: str | None = None
    """Its values become the images' ids; None numbers the rows."""
    metadata: tuple[str, ...] = ()
    """Columns carried through to D_PA and D_PI; in tars a member's ending (`txt`) or a key of the `.json` member."""
    min_bytes: int = Field(0, ge=0)
    """Smaller files are left out, or dropped when they are read where listing does not tell sizes."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Larger files are left out, or dropped without reading them to the end."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Take about this share of the images, drawn by `seed` and each image's id."""
    seed: int = 0
    limit: int | None = Field(None, ge=1)
    """Take at most this many images, the first in the source's order."""
    skip_duplicates: bool = True
    """Annotate files with the same bytes once: the others are dropped as `duplicate_of` the first."""
    shard_size: int = Field(256, ge=1)
    """Images per shard, the unit of retry, commit and resume."""
    max_shard_bytes: int = Field(256 * 2**20, ge=1)
    """A shard ends earlier where its files together would be larger."""
    num_listers: int = Field(16, ge=1)
    """Prefixes, tars or Parquet files that are listed at a time."""
    allow: tuple[Literal["http", "local_files", "parent_folders"], ...] = ()
    """What entries of lists, Parquet files and tars may name besides s3://, gs:// and files below them: http(s)://
    URIs, files of this machine in a list that lies elsewhere, paths with `..`."""

    @model_validator(mode="after")
    def _sizes_are_ordered(self) -> SourceConfig:
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes {self.min_bytes} is more than max_bytes {self.max_bytes}")
        return self


class ReadingConfig(Settings):
    """How files are read ahead of the engines."""

    num_shards: int = Field(4, ge=1)
    """Shards that are read at a time."""
    num_threads: int = Field(16, ge=1)
    """Requests at a time for one shard."""
    max_bytes_in_flight: int = Field(2 * 2**30, ge=1)
    """Files read and not yet committed, over the whole cluster; a shard that is larger by itself goes alone."""


class ObjectStoreConfig(Settings):
    """How objects at `s3://` are reached; credentials come from the environment, a profile or the machine's role."""

    endpoint_url: str | None = None
    """A server that speaks S3's protocol; None leaves it to AWS_ENDPOINT_URL, or to AWS itself."""
    region: str | None = None
    """None leaves it to AWS_REGION or the profile."""
    max_attempts: int = Field(8, ge=1)
    """Requests are repeated after faults that pass, with growing pauses, until this many have failed."""
    first_pause_s: float = Field(0.2, gt=0)
    """Pause after the first failure; it doubles with each further one, up to 20 seconds."""
    connect_timeout_s: float = Field(10.0, gt=0)
    read_timeout_s: float = Field(60.0, gt=0)
    max_connections: int = Field(64, ge=1)
    """Connections of one process."""
    multipart_bytes: int = Field(64 * 2**20, ge=5 * 2**20)
    """Objects from this size on are written in parts."""

    @field_validator("endpoint_url")
    @classmethod
    def _holds_no_credentials(cls, url: str | None) -> str | None:
        if url is not None and "@" in url:
            raise ValueError("a URL with credentials would end up in run.json; give them in the environment")
        return url
