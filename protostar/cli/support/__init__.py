"""What several commands share: connections, errors, options and output."""
