"""Read labelled benchmarks and score models' answers to them."""
