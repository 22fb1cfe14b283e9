"""Real servers for a machine that has none, and the demo that runs on them."""
