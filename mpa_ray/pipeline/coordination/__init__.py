"""The state that the workers of one pass share. No Ray here: plain objects for one event loop."""
