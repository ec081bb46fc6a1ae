"""Data to train and measure networks with: pictures, dark ones made from bright ones, pairs, packs."""
