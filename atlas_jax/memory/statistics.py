"""Statistics of a memory's use, as metrics; no gradient flows through them, but through `USAGE`."""
import jax
import jax.numpy as jnp

from atlas_jax.memory import spectrum
from atlas_jax.memory.types import ChunkOut, Gates, MemoryRule, Running, Token

# Names of statistics that keep their gradient begin with it, so that a loss may ask for them. Where nothing
# asks, the compiler drops them and their gradients.
USAGE = "usage/"


def of_chunks(rule: MemoryRule, slow, gates: Gates, doc_BT, out: ChunkOut, running: Running,
              end: Token) -> dict:
  """Returns scalars by name, means over real tokens and heads.

  Args:
    rule: for one head.
    slow: learned constants of the rule, leaves [H, ...].
    gates: leaves [B, T, H].
    doc_BT: document of each token, -1 at padding.
    out: the outcome of reading, leaves [B, T, H, ...].
    running: the memories after the last token, leaves [B, H, ...].
    end: the tokens of the last chunk, leaves [B, H, C, ...]; what they recall afterwards is compared with
      what they wrote. "inner_loss_before" is the rule's own loss, "recall_loss_after" half the squared error
      and "recall_loss_zero" that of answering zero: the two that compare across rules. Their keys' spread is
      "key_diversity", see `spectrum.key_diversity`.
  """
  usage = write_usage(rule, gates, doc_BT)
  slow, gates, out, running, end = jax.lax.stop_gradient((slow, gates, out, running, end))
  chunk_size = end.v.shape[2]
  # The base after the last chunk holds what that chunk wrote, also for rules that write at a chunk's end.
  recalled = jax.vmap(jax.vmap(rule.apply), in_axes=(None, 0, 0))(slow, running.base, end.k)
  after_BCH = jnp.moveaxis(0.5 * jnp.sum(jnp.square(recalled - end.v), -1), 1, 2)
  real_BT = (doc_BT >= 0).astype(after_BCH.dtype)
  mean = mean_of_real
  error, zero = _recall_losses(rule, recalled, end.v, real_BT[:, -chunk_size:])
  # Before and after are of the same tokens, so that their difference is what one chunk of writing gained.
  end_BC = real_BT[:, -chunk_size:]
  forget = mean(-gates.log_retention, real_BT)
  return {
      "write_rate_mean": mean(gates.write_rate, real_BT),
      "momentum_mean": mean(gates.momentum, real_BT),
      # Of the mean log: a mean of half-lives would be ruled by the few tokens that hardly forget.
      "retention_half_life_tokens": jnp.log(2.0).astype(forget.dtype) / jnp.maximum(forget, 1e-9),
      "surprise_norm_mean": mean(out.surprise_C, real_BT),
      "inner_loss_before": mean(out.loss_C[:, -chunk_size:], end_BC),
      "inner_loss_after": mean(after_BCH, end_BC),
      "recall_loss_after": error,
      "recall_loss_zero": zero,
      "fast_norm_mean": mean_norm(running.memory.fast),
      "key_diversity": spectrum.key_diversity(end.k, end_BC),
      **usage,
  }


def write_usage(rule: MemoryRule, gates: Gates, doc_BT) -> dict:
  """Returns how far the gates of writing are open, as a fraction of their bounds; with a gradient.

  Args:
    rule: for one head; its gates of writing are `write_rate` and own ones with `GateSpec.writes`.
    gates: leaves [B, T, H] and [B, T, H, size].
    doc_BT: document of each token, -1 at padding.

  Returns:
    {"usage/write": []}, the mean over real tokens, heads and gates; {} where a rule has no such gate.
  """
  fractions = []
  if "write_rate" in rule.uses:
    fractions.append(gates.write_rate[..., None] / rule.starts.write_rate_max)
  for spec in rule.gates:
    if spec.writes:
      gate = gates.more[spec.name]
      fractions.append((gate[..., None] if spec.size is None else gate) / spec.max)
  if not fractions:
    return {}
  open_BTH = jnp.mean(jnp.concatenate(fractions, axis=-1), axis=-1)
  return {f"{USAGE}write": mean_of_real(open_BTH, (doc_BT >= 0).astype(open_BTH.dtype))}


def mean_of_real(x_BTH, real_BT):
  """Returns the mean over heads and over the tokens that count, 1 in `real_BT`."""
  return jnp.sum(x_BTH * real_BT[..., None]) / jnp.maximum(jnp.sum(real_BT) * x_BTH.shape[-1], 1)


def _recall_losses(rule: MemoryRule, recalled_BHCM, v_BHCM, real_BC):
  """Returns half the squared error of what is recalled, and that of answering zero: means over real tokens.

  Where a rule aims at directions alone (see `MemoryRule.aims`), what each memory recalls is first brought to
  the one length that suits it best, as what follows the memory does.
  """
  v_BHCM = v_BHCM * real_BC[:, None, :, None]
  recalled_BHCM = recalled_BHCM * real_BC[:, None, :, None]
  if rule.aims == "direction":
    product_BH = jnp.sum(recalled_BHCM * v_BHCM, (2, 3))
    square_BH = jnp.sum(recalled_BHCM * recalled_BHCM, (2, 3))
    scale_BH = jnp.maximum(product_BH, 0) / jnp.maximum(square_BH, 1e-30)
    recalled_BHCM = recalled_BHCM * scale_BH[..., None, None]
  count = jnp.maximum(jnp.sum(real_BC) * v_BHCM.shape[1], 1)
  return (0.5 * jnp.sum(jnp.square(recalled_BHCM - v_BHCM)) / count,
          0.5 * jnp.sum(jnp.square(v_BHCM)) / count)


def of_tokens(gates: Gates, out: ChunkOut) -> dict:
  """Returns numbers of each token by name, [B, T], means over heads; arguments as of `of_chunks`."""
  return {"write_rate_BT": jnp.mean(gates.write_rate, axis=-1),
          "surprise_BT": jnp.mean(out.surprise_C, axis=-1)}


def mean_norm(fast):
  """Returns the mean norm of memories, whose leaves are [B, H, ...]."""
  return jnp.mean(jnp.sqrt(sum(jnp.sum(w * w, range(2, w.ndim)) for w in jax.tree.leaves(fast))))
