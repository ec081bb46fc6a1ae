"""The wire: messages as bytes, what a viewer makes of them, and who may connect."""
