"""Attention with prefixes, and its kernels."""
