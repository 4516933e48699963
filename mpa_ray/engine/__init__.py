"""Engines, which answer questions about images: the protocol, and the engines that implement it."""
