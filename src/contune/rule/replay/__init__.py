"""Old or made-up examples come back."""
