"""A gateway between browsers and Protostar's workers: HTTP and server-sent events, and one chat page."""
