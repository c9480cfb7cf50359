"""L2 and HBM bytes per op, counted by Nsight Compute."""
