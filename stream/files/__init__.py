"""Recordings that are converted to files or replayed; both can be stopped and resumed."""
