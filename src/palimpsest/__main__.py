"""`python -m palimpsest`."""

from palimpsest.cli import main

main()
