"""What must hold for every method and part, and the small run it is tried on."""
