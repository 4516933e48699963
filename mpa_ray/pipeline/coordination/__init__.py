"""The state that the workers of one pass share, in plain objects that run on one event loop and do not use Ray."""
