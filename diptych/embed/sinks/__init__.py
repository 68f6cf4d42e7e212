"""Where vectors go: one file a kind of place."""
