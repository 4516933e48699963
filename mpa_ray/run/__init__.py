"""What the files of a run mean."""
