"""An ARQ-compatible worker: claim, lease, heartbeat, takeover, finish. It imports nothing of chat."""
