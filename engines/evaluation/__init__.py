"""What an engine is worth: the LOL protocol, daylight, steadiness, thin links."""
