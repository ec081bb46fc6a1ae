"""What `nightbridge bench` measures."""
