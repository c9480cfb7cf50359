"""A scenario, predicted: under every belief, by tokens, as a timeline, ahead of a run."""
