"""Qwen3.5's text models: gated delta nets, with gated full attention at every few layers.

Their blocks repeat, and leaves lead with the repetitions: block j of a pattern of n is layer j, j + n, ...
"""
from collections.abc import Sequence

from atlas_jax.language.pretrained.names import LAYER, Row, llama

ARCHITECTURE = "Qwen3_5ForCausalLM"
MODEL_TYPE = "qwen3_5_text"
DEFAULTS = {"attention_bias": False, "head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "full_attention_interval": 4, "partial_rotary_factor": 0.25}

_LAYER = f"model.layers.{LAYER}."
_NAMES = {"norm_mixer/offset": "input_layernorm.weight", "norm_mlp/offset": "post_attention_layernorm.weight"}
_BOTH = tuple(Row(ours, _LAYER + theirs, "d", "d") for ours, theirs in _NAMES.items()) + tuple(
    row._replace(ours=row.ours.removeprefix("blocks/")) for row in llama.TABLE
    if row.ours.startswith("blocks/mlp/") and row.ours.endswith("kernel"))
_DELTA = _LAYER + "linear_attn."
_OF_KIND = {
    "full": tuple(row._replace(ours=row.ours.removeprefix("blocks/")) for row in llama.TABLE
                  if row.ours.startswith("blocks/attention/")) + (
        Row("attention/q_norm/offset", _LAYER + "self_attn.q_norm.weight", "k", "k"),
        Row("attention/k_norm/offset", _LAYER + "self_attn.k_norm.weight", "k", "k")),
    "linear": (
        Row("delta/qkv/kernel", _DELTA + "in_proj_qkv.weight", "e d", "d e"),
        Row("delta/conv", _DELTA + "conv1d.weight", "e o s", "s e o"),
        Row("delta/gate/kernel", _DELTA + "in_proj_z.weight", "(h m) d", "d h m"),
        Row("delta/decay/kernel", _DELTA + "in_proj_a.weight", "h d", "d h"),
        Row("delta/rate/kernel", _DELTA + "in_proj_b.weight", "h d", "d h"),
        Row("delta/log_rate", _DELTA + "A_log", "h", "h"),
        Row("delta/bias", _DELTA + "dt_bias", "h", "h"),
        Row("delta/norm", _DELTA + "norm.weight", "m", "m"),
        Row("delta/out/kernel", _DELTA + "out_proj.weight", "d (h m)", "h m d"))}
_REST = (Row("embed", "model.embed_tokens.weight", "v d", "v d"),
         Row("final_norm/offset", "model.norm.weight", "d", "d"),
         Row("head/kernel", "lm_head.weight", "v d", "d v"))


def table(pattern: Sequence[str]) -> tuple[Row, ...]:
  """Returns a row for every parameter of a model whose blocks repeat in this pattern."""
  rows = list(_REST)
  for at, kind in enumerate(pattern):
    rows += [row._replace(ours=f"blocks/block_{at}/{row.ours}", first=at, every=len(pattern))
             for row in (*_BOTH, *_OF_KIND[kind])]
  return tuple(rows)


def biases(config: dict) -> dict:
  """Returns the field of a `HybridDecoder` that says where biases are."""
  return dict(attention_bias=config["attention_bias"])
