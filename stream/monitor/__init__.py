"""How a relay is doing, told over HTTP."""
