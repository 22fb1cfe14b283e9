"""Walk a folder, read its files, parse Markdown, split it into chunks and count tokens."""
