"""Every placement of a model, best first, and what would flip the order."""
