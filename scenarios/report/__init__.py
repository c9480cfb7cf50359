"""Results as pages: one file that works from disk, and a local page whose controls re-run."""
