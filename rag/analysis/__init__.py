"""From text to search terms, the same way for documents and for questions."""
