"""What networks learn from and are measured on: pictures, dark ones made from bright ones, pairs, packs."""
