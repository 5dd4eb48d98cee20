"""Adapters around another adapter."""
