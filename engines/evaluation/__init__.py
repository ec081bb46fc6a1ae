"""Measures the quality of an engine: the LOL protocol, daylight, steadiness, thin links."""
