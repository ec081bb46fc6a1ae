"""From a recipe to weights. Needs the `train` extra; `train` shows the whole run, `recipes/` holds the shipped ones."""
