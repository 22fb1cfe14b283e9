"""The life of one question: in PostgreSQL, at the provider and on its event stream."""
