"""Every combination of a file's axes."""
