"""`python -m hwlab` is `hwlab`."""

from hwlab.cli import main

main()
