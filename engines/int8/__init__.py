"""The picture graph in eight bits, and what keeps its pictures as they were."""
