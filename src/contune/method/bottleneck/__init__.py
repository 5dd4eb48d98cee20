"""Methods of bottleneck adapters."""
