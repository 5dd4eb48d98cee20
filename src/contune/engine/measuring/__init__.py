"""What a session measures."""
