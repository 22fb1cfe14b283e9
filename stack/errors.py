"""What goes wrong with the embedded servers."""


class StackError(Exception):
    """A server or its place on disk can't be used; the message says why and what to do."""
