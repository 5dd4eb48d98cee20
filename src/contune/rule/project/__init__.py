"""Gradients and steps in allowed directions."""
