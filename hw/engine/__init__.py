"""One rank that runs a program: tensors, order of issue, other ranks, graphs."""
