"""A night camera that does not exist, for demos, benchmarks and tests."""
