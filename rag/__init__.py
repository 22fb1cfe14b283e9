"""From files to a prompt, from a prompt to tokens; knows nothing of queues."""
