"""Writing completions with vLLM, in a process of its own."""
