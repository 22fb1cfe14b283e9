"""The bill: what each attempt cost at the provider, and what a user may spend."""
