"""The folder of a living model on disk: blocks by their hash, sealed records, a chained log, one pointer."""
