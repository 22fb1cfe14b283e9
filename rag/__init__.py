"""From files to passages, from passages to a prompt, from a prompt to tokens. Knows nothing of queues."""
