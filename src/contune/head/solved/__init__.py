"""Heads that are solved and not trained."""
