"""Measures: the torch engine that runs the programs that `sim.plan` compiles."""
