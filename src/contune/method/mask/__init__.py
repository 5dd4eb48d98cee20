"""Methods that train a share of the weights."""
