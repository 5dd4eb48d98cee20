"""Kinds of input, one file each; see `contune.stream.modality`."""
