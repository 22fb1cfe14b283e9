"""Modes, the prompt budget, prompt parts, tags around untrusted text, and summaries."""
