"""Methods that average over time."""
