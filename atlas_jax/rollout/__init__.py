"""Writing completions with a model, and scoring them: samplers, answers, rewards."""
