"""What no fit has seen, predicted again, and the ledger that holds every point of it."""
