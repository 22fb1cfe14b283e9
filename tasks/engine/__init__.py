"""An ARQ-compatible worker: claim, lease, heartbeat, takeover, finish. It knows nothing of chat."""
