"""Optimizers: learning-rate schedules, and the chain that turns gradients into updates."""
