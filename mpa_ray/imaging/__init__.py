"""Decoding and scaling of image files."""
