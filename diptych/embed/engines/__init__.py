"""What turns samples into vectors: one file an engine."""
