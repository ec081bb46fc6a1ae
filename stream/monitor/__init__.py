"""A relay's state and metrics over HTTP."""
