"""Where images come from: a source is indexed into shards, a shard's files are read, and bytes become pixels safely."""
