"""Methods of low-rank adapters."""
