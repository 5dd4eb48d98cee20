"""Running averages of what is trained."""
