"""How answers of each kind are judged."""
