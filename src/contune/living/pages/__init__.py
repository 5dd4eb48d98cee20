"""Pages about a living model: one HTML file that needs nothing else."""
