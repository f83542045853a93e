"""Generating text with a state of fixed size."""
