"""Watching a run: metrics, progress, FLOPs and memory, and the report drawn from its metrics."""
