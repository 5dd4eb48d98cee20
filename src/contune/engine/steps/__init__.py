"""Gradient steps: the one loop, its optimizer, and chunks."""
