"""Estimate the time, GPUs and cost of a run before anything is started."""
