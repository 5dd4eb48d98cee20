"""What a run is worth: the accuracy matrix, everything that follows from it, and the cost ledger."""
