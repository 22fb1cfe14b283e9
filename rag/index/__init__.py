"""The corpus index in PostgreSQL: reindex runs, batches, rows and generations."""
