"""What is done to one shard: plain classes around a model and pure functions, no Ray."""
