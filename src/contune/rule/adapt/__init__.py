"""Adapting to what is answered, without labels."""
