"""Low-rank changes of weights."""
