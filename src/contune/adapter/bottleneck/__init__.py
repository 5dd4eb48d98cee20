"""Bottleneck adapters and scalings of features."""
