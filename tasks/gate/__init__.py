"""Shared rate limits and the circuit breaker in front of the provider."""
