"""Wrong formulas: each is applied to a copy of the tree, and some test must notice."""
