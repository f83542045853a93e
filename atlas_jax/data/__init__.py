"""Where batches come from: corpora, tokenizers, packing, and the sources that serve them."""
