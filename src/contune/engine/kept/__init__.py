"""What frozen models gave, kept and planned for."""
