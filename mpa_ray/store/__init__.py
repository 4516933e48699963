"""The run directory: what is written, when it counts, and how it is counted again."""
