"""Models that keep learning while they run: neural memory, tiny recursive models, post-training.

The names of `__all__` are imported from their modules when they are first used, so that `import atlas_jax`
loads nothing.
"""
import importlib

# Name -> its module below this package, and its name there.
_PUBLIC = {
    "NeuralMemory": ("models.neural_memory", "NeuralMemory"),
    "policy_loss": ("losses.policy", "policy_loss"),
    "policy_preset": ("losses.policy", "preset"),
    "group_advantages": ("losses.advantages", "group_advantages"),
    "language_model": ("models.language", "language_model"),
    "NativeSampler": ("language.decoding.native", "NativeSampler"),
    "SamplerOptions": ("language.decoding.sampler", "SamplingOptions"),
    "ByteTokenizer": ("data.tokenizer", "ByteTokenizer"),
    "recursive_model": ("models.trm", "recursive_model"),
    "supervision_step": ("models.trm", "supervision_step"),
}
__all__ = [*_PUBLIC]


def __getattr__(name: str):
  """Imports a public name."""
  # Python asks here only for names that it has not found (PEP 562). The error must be an AttributeError:
  # `from atlas_jax import config` asks here first, and imports the submodule only after that error.
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
  module, attribute = _PUBLIC[name]
  return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__():
  """Lists the public names beside what is loaded."""
  return sorted({*globals(), *__all__})
