"""What runs where: specs, placements, ops and programs. No clock, no SimPy, no torch."""
