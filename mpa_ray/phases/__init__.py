"""The phases of a run, each by itself."""
