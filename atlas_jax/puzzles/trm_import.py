"""Reads the weights of the original TRM and HRM programs by their names.

Source: SamsungSAILMontreal/TinyRecursiveModels and sapientinc/HRM; matrices are stored [out, in] there.
"""
import re

import jax.numpy as jnp
import numpy as np

from atlas_jax.models import trm_baselines, trm_blocks

# The original has one block stack, called L_level in TRM; HRM has two. All cycles share its weights.
LEVELS = {"level": "L_level", "answer_level": "H_level", "latent_level": "L_level"}
# Buffers there, not parameters: constants drawn once, which the weights have been trained with.
RESETS = {"trm": ("H_init", "L_init"), "single": ("L_init",), "hrm": ("H_init", "L_init"),
          "transformer": ("H_init",)}
TABLE = "puzzle_emb.weights"


def params_of(named: dict, model) -> tuple[dict, tuple, np.ndarray | None]:
  """Returns the parameters of a model from arrays of the original.

  Args:
    named: arrays by their names, as in a checkpoint; a prefix that ends in "inner." is taken off.
    model: a `models.trm.TRM` of the same sizes.

  Returns:
    (params, reset, table): float32 parameters as `model.init` gives them, the vectors latents start from in
    the model's dtype, and the puzzle table, or None where there is none.

  Raises:
    ValueError: if a name is missing or left over, or a shape differs.
  """
  left: dict[str, np.ndarray] = {}
  for name, array in named.items():
    short = re.sub(r"^.*\binner\.", "", name)  # Its wrappers, as in "_orig_mod.model.inner.lm_head.weight".
    if short in left:
      raise ValueError(f"{short!r} is there twice, once as {name!r}; give the weights of one model")
    left[short] = np.asarray(array)

  def take(name: str, *shape: int, transpose: bool = True):
    if name not in left:
      raise ValueError(f"the weights have no {name!r}, which variant {model.variant!r} with mixer "
                       f"{model.mixer!r} needs; they have {', '.join(sorted(left))}")
    array = left.pop(name)  # What is left in the end has no place in the model, and is refused.
    if array.shape != shape:
      raise ValueError(f"{name} is of shape {array.shape}, but the model's fields need {shape}")
    # A linear layer there is x W^T with W [out, in]; ours is x W.
    return jnp.asarray(array.T if transpose and array.ndim == 2 else array, jnp.float32)

  width = model.width
  vocab = model.vocab_size
  params = {"embed": take("embed_tokens.embedding_weight", vocab, width, transpose=False),
            "head": take("lm_head.weight", vocab, width),
            "halt_kernel": take("q_head.weight", 2, width), "halt_bias": take("q_head.bias", 2)}
  total = model.n_prefix + model.seq_len
  if model.positions == "learned":
    params["positions"] = take("embed_pos.embedding_weight", total, width, transpose=False)
  for level in trm_baselines.LEVELS[model.variant]:
    theirs = "H_level" if model.variant == "transformer" else LEVELS[level]  # The baseline's stack.
    params[level] = {f"block_{i}": _block(take, f"{theirs}.layers.{i}.", model) for i in range(model.depth)}
  reset = tuple(take(name, width).astype(model.dtype) for name in RESETS[model.variant])
  table = left.pop(TABLE, None)
  if table is not None and table.ndim != 2:
    raise ValueError(f"{TABLE} is of shape {table.shape}, and a puzzle table has rows and columns")
  if left:
    raise ValueError(f"the model has no place for {', '.join(sorted(left))}; its variant, mixer, positions "
                     "or depth differ from those of the weights")
  return params, reset, table


def _block(take, prefix: str, model) -> dict:
  """Takes one block; the token MLP multiplies from the left, so its matrices stay as they are."""
  width = model.width
  total = model.n_prefix + model.seq_len
  ff, hidden = (trm_blocks.hidden_width(size, model.expansion) for size in (width, total))
  mlp = {"gate_up_kernel": take(prefix + "mlp.gate_up_proj.weight", 2 * ff, width),
         "out_kernel": take(prefix + "mlp.down_proj.weight", width, ff)}
  if model.mixer == "mlp":
    up = take(prefix + "mlp_t.gate_up_proj.weight", 2 * hidden, total, transpose=False)
    down = take(prefix + "mlp_t.down_proj.weight", total, hidden, transpose=False)
    return {"token_mlp": {"gate_up_kernel": up, "out_kernel": down}, "mlp": mlp}
  # Not width: 12 heads of a width of 512 are 504 wide, the baseline's attention.
  inner = model.heads * (width // model.heads)
  # One matrix, in the order all q heads, all k heads, all v heads, as ours.
  mix = {"qkv_kernel": take(prefix + "self_attn.qkv_proj.weight", 3 * inner, width),
         "out_kernel": take(prefix + "self_attn.o_proj.weight", width, inner)}
  return {"attention": mix, "mlp": mlp}
