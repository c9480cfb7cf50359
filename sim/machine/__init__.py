"""What time it takes: L2 state, shared bandwidths, links and ranks under SimPy."""
