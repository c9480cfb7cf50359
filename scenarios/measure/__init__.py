"""Hand a scenario to the engine, and look at the machine first."""
