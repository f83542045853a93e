"""Writing on from prompts: one engine of states, filters of the next token, streams of text, samplers."""
