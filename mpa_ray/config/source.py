"""Settings of the source of images, of reading files, and of object stores."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mpa_ray.config.settings import Location, Settings
from mpa_ray.redaction import has_url_secrets

DEFAULT_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "pjpeg", "png", "apng", "webp", "avif", "gif", "bmp", "dib", "tif", "tiff", "ico"),
    *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpc", "jpx", "jpf"),
)
"""The file name endings of the formats that the decoder reads."""


class SourceConfig(Settings):
    """The unlabeled images."""

    path: Location
    """Where the images are: a folder or prefix with images, Parquet files or tars; a glob; one such file; a list of
    URIs; or a folder saved by `datasets`. It may be a local path, an `s3://` URI or a `gs://` URI. After the images are
    indexed, you may move them, and then set this path to the new place."""
    kind: str = "auto"
    """The kind of source, such as images, list, parquet, webdataset or saved_dataset; `auto` recognises the kind by the
    path's ending and the folder's content. The error for an unknown kind lists all kinds."""
    extensions: tuple[str, ...] = DEFAULT_EXTENSIONS
    """File name endings of images, without the dot. They also apply to the members of tars. An empty list takes every
    file. If the extra `heic` is installed, the default also includes `heic`, `heif` and `hif`."""
    exclude: tuple[str, ...] = ()
    """Globs of files to leave out. A glob without a slash, such as `thumbs` or `*_small.*`, matches the name of any
    folder or file. A glob with a slash, such as `2019/*/raw`, matches a path below the source's root. Both kinds of
    glob also match the names of members of tars."""
    include_hidden: bool = False
    """Whether to take hidden files, files in hidden folders, and files in `__MACOSX`, `@eaDir`, `lost+found` and
    similar folders of operating systems. The names of hidden files and folders begin with a dot."""
    image_column: str = "image"
    """The column that holds the image, in a CSV or JSON list, a Parquet file or a saved dataset: bytes, a URI, base64,
    or Hugging Face's struct of bytes and path. `images[0]` means the first item of each list in the column `images`. If
    a JSON list lacks the default column, the column `images` is tried, too."""
    id_column: str | None = None
    """The column with the images' ids; None generates ids from file names and row numbers."""
    metadata: tuple[str, ...] = ()
    """Columns to copy to D_PA and D_PI. For tars, each entry is the ending of a member (`txt`) or a key of the `.json`
    member."""
    min_bytes: int = Field(0, ge=0)
    """Smaller files are left out. If the listing does not show sizes, smaller files are dropped when they are read."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Larger files are left out. If the listing does not show sizes, larger files are dropped when they are read, and
    are not read to the end."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Take a random sample of about this share of the images. Whether an image is taken depends only on its id and on
    `seed`."""
    seed: int = 0
    """Seed of the random sample."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of images to take: the first ones in the source's order."""
    skip_duplicates: bool = True
    """Annotate only the first of several files with the same bytes. The others are dropped with reason
    `duplicate_of`."""
    skip_damaged: bool = False
    """Whether to leave out and count the tars, Parquet files and files of saved datasets that are truncated or damaged.
    If this is not set, the first such file ends indexing with an error that names the file."""
    shard_size: int = Field(256, ge=1)
    """Images per shard. A shard is the unit of retry, commit and resume."""
    max_shard_bytes: int = Field(256 * 2**20, ge=1)
    """Largest total size of a shard's files, if the listing shows sizes. A shard ends before it would exceed this size,
    even if it has fewer images than `shard_size`. A larger file is in a shard of its own."""
    num_listers: int = Field(16, ge=1)
    """Number of prefixes, tars or Parquet files to list concurrently."""
    allow: tuple[Literal["http", "redirects", "local_files", "parent_folders", "signed_urls"], ...] = ()
    """What entries of lists, Parquet files and tars may refer to, in addition to s3:// URIs, gs:// URIs and files below
    the folder of the list, Parquet file or tar. `http` allows http(s):// URIs. `redirects` allows web servers to
    redirect to another host. `local_files` allows local files in a remote list. `parent_folders` allows paths with
    `..`. `signed_urls` allows URLs with a password or a signature, which the run then stores in its rows. A public host
    may never redirect to a private address."""

    @model_validator(mode="after")
    def _sizes_are_ordered(self) -> SourceConfig:
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes {self.min_bytes} is more than max_bytes {self.max_bytes}")
        return self


class ReadingConfig(Settings):
    """How images are read before the engines process them."""

    num_shards: int = Field(4, ge=1)
    """Number of shards to read concurrently."""
    num_threads: int = Field(16, ge=1)
    """Number of concurrent reads for one shard."""
    max_bytes_in_flight: int = Field(2 * 2**30, ge=1)
    """Limit on the bytes of image files in flight over the whole cluster: files that were read, and whose shards are
    not committed yet. While a shard that is larger than this is read, no other shard is read."""


class ObjectStoreConfig(Settings):
    """How to access objects with `s3://` URIs. Credentials come from the environment, a profile or the machine's
    role."""

    endpoint_url: str | None = None
    """URL of a server with the S3 API. None uses the environment variable AWS_ENDPOINT_URL or, if this variable is not
    set, AWS itself."""
    region: str | None = None
    """AWS region. None uses the environment variable AWS_REGION or, if this variable is not set, the profile's
    region."""
    max_attempts: int = Field(8, ge=1)
    """Attempts for each request. Transient errors are retried, with growing pauses."""
    first_pause_s: float = Field(0.2, gt=0)
    """Pause after the first failure. The pause doubles after each further failure, up to 20 seconds."""
    max_outage_s: float = Field(120.0, ge=0)
    """How long a request is repeated while the store asks for fewer requests (HTTP status 429 or 503). During this
    time, such replies do not count towards `max_attempts`, and all threads of a process pause their requests. If no
    request of a process has succeeded for this long, failed requests are no longer repeated."""
    connect_timeout_s: float = Field(10.0, gt=0)
    """Longest wait for a connection."""
    read_timeout_s: float = Field(60.0, gt=0)
    """Longest wait for data on a connection."""
    read_deadline_s: float = Field(300.0, gt=0)
    """Longest time for one read of a file, an object or a URL, including all attempts. After this time, the connection
    to a slow server is closed, and a read from a mount that does not answer is abandoned."""
    max_connections: int = Field(64, ge=1)
    """Concurrent connections of one process."""
    multipart_bytes: int = Field(64 * 2**20, ge=5 * 2**20)
    """Objects of at least this many bytes are uploaded in parts of this size."""

    @field_validator("endpoint_url")
    @classmethod
    def _is_a_url_without_credentials(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if "@" in url or has_url_secrets(url):
            raise ValueError("is a URL with credentials, which the run would store: give them in the environment")
        if not re.match(r"https?://[^/\s]", url, re.IGNORECASE):
            host = url.rpartition("://")[2]
            raise ValueError(f"is not a URL: write http://{host} or https://{host}")
        return url
