"""Faults that happen to runs: files that break."""
