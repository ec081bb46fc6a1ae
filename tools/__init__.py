"""The commands of `nightbridge`: one small module each, over the public functions of `stream` and `engines`."""
