"""A simulated night camera, for demos, benchmarks and tests."""
