"""`python -m contune` is the command line."""

from contune.cli import main

main()
