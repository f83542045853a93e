"""Judges: models that score answers where no program can, with `no verdict` wherever there is none."""
