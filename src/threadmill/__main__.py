"""`python -m threadmill` is the command line."""

from threadmill.cli import main

main()
