"""Methods that align the head after each task."""
