"""Puzzles: grids in, grids out. Groups of puzzles (a task with its augmentations) of examples (pairs)."""
