"""From a URL to connections: what a URL names, and pools that connect again where a server refuses to serve."""
