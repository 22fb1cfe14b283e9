"""From passages to a prompt: modes, the prompt budget, prompt tags around untrusted text, and summaries."""
