"""Sessions of agents as training data: the record, its files and stores, and what is learnt from it."""
