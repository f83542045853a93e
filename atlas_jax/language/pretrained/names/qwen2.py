"""Qwen2 and Qwen2.5: biases on queries, keys and values, always."""
from atlas_jax.language.pretrained.names import llama

ARCHITECTURE = "Qwen2ForCausalLM"
MODEL_TYPE = "qwen2"
DEFAULTS = {"head_dim": None}
TABLE = llama.TABLE


def biases(config: dict) -> dict:
  """Returns the decoder's fields that say where biases and norms are."""
  del config  # Biases are where they are, whatever it says; o_proj has none.
  return dict(qk_norm=False, qkv_bias=True, out_bias=False, mlp_bias=False)
