"""Formats of pretrained models: Hugging Face's configs, tensors, tokenizers and adapters."""
