"""Merging fine-tuned models."""
