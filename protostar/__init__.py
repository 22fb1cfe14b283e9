"""What needs no fixed top-level name: the settings and the `protostar` command."""
