"""Connections, errors, options and output that several commands share."""
