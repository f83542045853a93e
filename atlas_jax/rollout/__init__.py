"""Groups of completions and what they are worth: answers, rewards, sources of batches."""
