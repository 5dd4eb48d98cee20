"""Methods that rehearse."""
