"""Pure mathematics that parts share and a notebook can call."""
