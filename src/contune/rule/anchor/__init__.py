"""Penalties that hold weights, features or outputs."""
