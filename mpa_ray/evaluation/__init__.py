"""Measure models on labelled questions: read the set, and score what was predicted."""
