"""Models that keep learning while they run: neural memory, tiny recursive models, post-training."""
