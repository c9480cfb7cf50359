"""One call on a host of several GPUs: predict, check, calibrate the links, measure, compare."""
