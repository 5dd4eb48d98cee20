"""Readers of files, folders, tables and hubs."""
