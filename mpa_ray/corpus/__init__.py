"""The corpus: indexes a source of images into shards, and reads the images of a shard."""
