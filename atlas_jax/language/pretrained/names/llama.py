"""Llama 2 and 3: no norms of queries and keys; biases only where the config asks for them."""
from atlas_jax.language.pretrained.names import Row

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"
DEFAULTS = {"attention_bias": False, "mlp_bias": False, "head_dim": None}

_ATTENTION = "model.layers.{}.self_attn."
_MLP = "model.layers.{}.mlp."

# PyTorch's linear layers store [outputs, inputs], ours are [inputs, outputs]; heads and their width are one
# axis there and two here. Of a tied model head/kernel is absent, as the model has no such leaf.
TABLE = (
    Row("embed", "model.embed_tokens.weight", "v d", "v d"),
    Row("blocks/norm_attention/scale", "model.layers.{}.input_layernorm.weight", "d", "d"),
    Row("blocks/attention/q/kernel", _ATTENTION + "q_proj.weight", "(h k) d", "d h k"),
    Row("blocks/attention/q/bias", _ATTENTION + "q_proj.bias", "(h k)", "h k"),
    Row("blocks/attention/k/kernel", _ATTENTION + "k_proj.weight", "(h k) d", "d h k"),
    Row("blocks/attention/k/bias", _ATTENTION + "k_proj.bias", "(h k)", "h k"),
    Row("blocks/attention/v/kernel", _ATTENTION + "v_proj.weight", "(h k) d", "d h k"),
    Row("blocks/attention/v/bias", _ATTENTION + "v_proj.bias", "(h k)", "h k"),
    Row("blocks/attention/out/kernel", _ATTENTION + "o_proj.weight", "d (h k)", "h k d"),
    Row("blocks/attention/out/bias", _ATTENTION + "o_proj.bias", "d", "d"),
    Row("blocks/norm_mlp/scale", "model.layers.{}.post_attention_layernorm.weight", "d", "d"),
    Row("blocks/mlp/gate/kernel", _MLP + "gate_proj.weight", "f d", "d f"),
    Row("blocks/mlp/gate/bias", _MLP + "gate_proj.bias", "f", "f"),
    Row("blocks/mlp/up/kernel", _MLP + "up_proj.weight", "f d", "d f"),
    Row("blocks/mlp/up/bias", _MLP + "up_proj.bias", "f", "f"),
    Row("blocks/mlp/down/kernel", _MLP + "down_proj.weight", "d f", "f d"),
    Row("blocks/mlp/down/bias", _MLP + "down_proj.bias", "d", "d"),
    Row("final_norm/scale", "model.norm.weight", "d", "d"),
    Row("head/kernel", "lm_head.weight", "v d", "d v"),
)


def biases(config: dict) -> dict:
  """Returns the decoder's fields that say where biases and norms are."""
  asked = config["attention_bias"]
  # attention_bias is of all four projections, the output's included.
  return dict(qk_norm=False, qkv_bias=asked, out_bias=asked, mlp_bias=config["mlp_bias"])
