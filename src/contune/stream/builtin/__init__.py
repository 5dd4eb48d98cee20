"""Streams that need no files."""
