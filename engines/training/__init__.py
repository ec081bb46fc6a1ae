"""From a recipe to weights. Needs the `train` extra; `train` is the whole run, `recipes/` holds the shipped recipes."""
