"""SMILE: experts of small singular values."""
