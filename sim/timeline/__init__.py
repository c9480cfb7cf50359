"""Timelines: what ran when as a picture to zoom into, in the format that trace viewers open."""
