"""Tokens and prefixes that are learned."""
