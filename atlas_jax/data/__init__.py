"""Data: corpora, tokenizers, packing, and the sources that serve batches."""
