"""Op + belief -> seconds: physics forms, and the two cost models that use them."""
