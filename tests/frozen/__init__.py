"""Today's answers, written down before the house was moved, and held to the last bit."""
