"""`python -m protostar`: the `protostar` command of a source tree that is not installed."""

from protostar.cli.app import main

main()
