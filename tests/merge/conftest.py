"""What the tests of merging share."""

from merge_models import trio

__all__ = ["trio"]
