"""Says before a run how much memory and time it takes on a machine that is not at hand."""
