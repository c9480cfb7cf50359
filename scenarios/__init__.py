"""Asks: one question per short script, the command line, reports. Imported by nothing."""
