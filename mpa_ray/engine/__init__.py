"""Engines, which answer questions about images: their protocol, and its implementations."""
