"""Qwen3, the dense ones: queries and keys are normalised per head; biases only where the config asks."""
from atlas_jax.language.pretrained.names import Row, llama

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"
# 128 also where hidden_size / num_attention_heads is another number, as in the smaller models.
DEFAULTS = {"attention_bias": False, "head_dim": 128}
TABLE = (
    *llama.TABLE,
    # One scale of width K for all heads.
    Row("blocks/attention/q_norm/scale", "model.layers.{}.self_attn.q_norm.weight", "k", "k"),
    Row("blocks/attention/k_norm/scale", "model.layers.{}.self_attn.k_norm.weight", "k", "k"),
)


def biases(config: dict) -> dict:
  """Returns the decoder's fields that say where biases and norms are."""
  asked = config["attention_bias"]
  return dict(qk_norm=True, qkv_bias=asked, out_bias=asked, mlp_bias=False)
