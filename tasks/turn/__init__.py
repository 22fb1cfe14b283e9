"""One question from the stored turn to the published ending: in PostgreSQL, at the provider and on its event stream."""
