"""Training losses: pure functions of arrays."""
