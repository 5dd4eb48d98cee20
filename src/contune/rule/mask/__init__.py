"""Which entries may move."""
