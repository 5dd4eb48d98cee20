"""The model's own weights, all or some."""
