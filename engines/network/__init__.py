"""The torch network, one file for each box of the paper's figure 3. Needs the `train` extra."""
