"""Neural long-term memory: fast weights that are trained while text is read."""
