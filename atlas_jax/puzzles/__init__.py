"""Puzzles, grids in and grids out: ARC, Sudoku and Maze; sets, batches, solving, votes and pictures.

A set has groups (a task with its augmentations) of puzzles, and these have examples (pairs of grids).
"""
