"""Checkpoints: their content, components and chat templates, and which of them can share an engine."""
