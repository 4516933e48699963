"""One pass of a model over shards, as a Ray Data graph."""
