"""The results of a run, as JSON, as one self-contained page and as a table for the terminal."""
