"""List the source's images and write the corpus manifest."""

from __future__ import annotations

from mpa_ray.config import RunConfig
from mpa_ray.corpus.index import index_source
from mpa_ray.corpus.source_root import SourceRoot
from mpa_ray.observability.progress import say
from mpa_ray.phases.context import RunContext
from mpa_ray.pipeline.run_pass import recorded
from mpa_ray.run.left_out_counts import left_out_in_words
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.phase_record import PhaseKey

INDEX = PhaseKey("index")


def index(context: RunContext[RunConfig]) -> None:
    """Write the corpus manifest, unless it exists."""
    context.begin(writes=["corpus"])
    if context.run.is_indexed():
        SourceRoot.of(context.config.source).record_if_missing(context.run)
    else:
        with recorded(context.run, INDEX):
            index_source(context.config.source, context.run, context.places)
    report_corpus(context.run.manifest())


def report_corpus(manifest: Manifest) -> None:
    """Print the size of the corpus, and what the listing left out."""
    images = "1 image" if manifest.num_images == 1 else f"{manifest.num_images} images"
    shards = "1 shard" if manifest.num_shards == 1 else f"{manifest.num_shards} shards"
    say(f"index: {images} in {shards}")
    if manifest.left_out:
        say(f"index: {left_out_in_words(manifest.left_out)}")
