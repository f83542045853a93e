"""Faults on purpose: kills, starts at the same time, damaged files."""
