"""Status, stuck jobs, dead letters, metrics, logs and traces."""
