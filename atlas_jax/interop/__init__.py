"""Weights and files of other programs, read into ours and written from them."""
