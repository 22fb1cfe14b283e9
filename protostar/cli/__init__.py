"""The `protostar` command. It stands above every other package; none imports it."""

from protostar.cli.app import main

__all__ = ["main"]
