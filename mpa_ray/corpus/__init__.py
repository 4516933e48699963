"""The corpus: a source of images is indexed into shards, and the images of a shard are read."""
