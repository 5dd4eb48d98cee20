"""The gate: whether a candidate may take the place of the version that answers."""
