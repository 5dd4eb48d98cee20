"""What a person reads of runs: tables, figures, the page."""
