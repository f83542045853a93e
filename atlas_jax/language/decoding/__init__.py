"""Writing on from prompts: the state of fixed size, filters of the next token, samplers."""
