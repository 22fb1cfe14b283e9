"""The older list and Pub/Sub protocol."""
