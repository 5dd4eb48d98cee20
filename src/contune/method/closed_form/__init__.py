"""Methods whose head is solved, not trained."""
