"""Asks: one question per short script, the command line, reports. Imported by nothing."""

# A what-if is run by its name alone: `python -m scenarios.l2_capacity`.
__path__ = [*__path__, *(f"{folder}/what_if" for folder in __path__)]
