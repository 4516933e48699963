"""Bytes: local folders and object stores."""
