"""A run on disk: its configuration, its directory, its report, and how runs compare."""
