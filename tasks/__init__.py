"""What the queue runs."""
