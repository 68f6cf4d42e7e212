"""Vectors in batches: embedders, the job, where vectors go, search."""
