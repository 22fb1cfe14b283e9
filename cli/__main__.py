"""`python -m cli`: the `protostar` command of a source tree that is not installed."""

from cli.app import main

main()
