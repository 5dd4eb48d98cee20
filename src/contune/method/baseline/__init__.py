"""Marks to compare with."""
