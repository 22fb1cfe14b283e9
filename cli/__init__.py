"""The `protostar` command. It stands above every other room and is imported by none."""

from cli.app import main

__all__ = ["main"]
