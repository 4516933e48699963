"""The run directory: its files, and what they mean."""
