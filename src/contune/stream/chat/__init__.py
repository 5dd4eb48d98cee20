"""Conversations and documents."""
