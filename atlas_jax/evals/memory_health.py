"""Health of a model's memories on held-out text: gates, weights, recall and half-life of each block.

Training reports the same of its own batches; here the text is held out, and read in the order of its
documents with the state passed on, as memory gain reads it.
"""
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, held_out
from atlas_jax.models import lm, memories

TOKENS = "eval/memory_health_tokens"
# What models report of a block -> the metric's name.
MEANS = {
    "mix_gate_raw_mean": "raw_gate_mean",
    "mix_gate_raw_below_0.1_frac": "raw_gate_below_0.1_frac",
    "mix_gate_mean": "gate_mean",
    "write_rate_mean": "write_rate_mean",
    "surprise_norm_mean": "surprise_norm_mean",
    "inner_loss_before": "inner_loss_before",
    "inner_loss_after": "inner_loss_after",
    "key_diversity": "key_diversity",
}
HALF_LIFE = "retention_half_life_tokens"
RECALL = ("recall_loss_after", "recall_loss_zero")
SPECTRUM = ("effective_rank", "singular_value_")
# Gates of which rules say whether they use them: what a rule does not use is reported as 0.
USES = {"write_rate_mean": "write_rate", HALF_LIFE: "log_retention"}


def make(model: lm.LM, source_factory, mesh: Mesh, *, max_tokens: int | None = None):
  """Makes the evaluation.

  Args:
    model: one with a memory.
    source_factory: gives a fresh source of held-out batches, see `held_out.batches`.
    mesh: over which rows are split.
    max_tokens: see `held_out.batches`; None reads all.

  Returns:
    run(trained, *, step) -> EvalOut with, for each block with a memory, means over real tokens, padding left
    out: "eval/raw_gate_mean/layer_00" and so on, of the gate before its floor; "eval/raw_gate_below_0.1_frac/
    ..." of it; "eval/gate_mean/..." behind the floor; "eval/write_rate_mean/..."; "eval/surprise_norm_mean/
    ..."; "eval/half_life_tokens/...", of the mean log of the common retention gate; "eval/inner_loss_ratio/
    ...", squared error over that of answering zero of what was written in a segment's last chunk, asked
    behind it; "eval/memory_norm/...", of the fast weights at a segment's end, a mean over heads. Over the
    norm that a document starts with it is "eval/memory_norm_ratio/..."; where a document starts from zero,
    it is "eval/memory_norm_in_values/..." in place of that, over the norm of one value, which is 1: with
    keys of unit norm no read can be longer than the weights' norm, and below .01 none is a hundredth of what
    it should be. Of the same weights "eval/effective_rank/..." is how many directions they use, and
    "eval/singular_value_00/..." to "eval/singular_value_09/..." with "eval/singular_value_mean/..." are their
    singular values, each row's and head's own, see `memory.spectrum`; of a deep memory means over its
    matrices, with "eval/effective_rank_NAME/..." of each. "eval/inner_loss_before/..." and "..._after/..."
    are the rule's own loss of a segment's last chunk, "eval/recall_loss_after/..." and "..._zero/..." half
    the squared error and that of answering zero; "eval/key_diversity/..." is the spread of that chunk's keys.
    "eval/raw_gate_mean_min_layer" is the least gate of all blocks; "eval/memory_health_tokens" says on how
    many tokens all are measured. What a mix or a rule has not, such as a gate, is absent.

  Raises:
    ValueError: if the model has no memory.
  """
  if not model.has_fast_weights:
    raise ValueError(f"config.model.memory_mix={model.memory_mix!r} leaves no memory to measure; take "
                     "memory_health out of the evals")
  segment_step = held_out.make_step(functools.partial(_segment, model), mesh)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    return result(held_out.add_up(segment_step, trained.params, model, source_factory(), mesh,
                                  max_tokens=max_tokens))

  return run


def _segment(model: lm.LM, params, state: lm.LMState, batch: dict):
  """Reads a segment; returns the state, and each number times the tokens that it is of."""
  out: Any = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                         mode="packed")
  read_B = jnp.sum(batch["doc_BT"] >= 0, axis=1).astype(jnp.float32)
  tokens = jnp.sum(read_B)
  means = {name: value for name, value in out.stats.items() if _is_used(model, name.split("/")[0])}
  # By way of rates: a mean of half-lives would be ruled by the segment that forgets least.
  means = {name: math.log(2) / value if name.startswith(HALF_LIFE) else value
           for name, value in means.items()}
  sums = {name: value * tokens for name, value in means.items()} | {"tokens": tokens}
  start = memories.started(model, memories.learned_memory(model, params), model.zero_state(1))
  start_L = memories.fast_norms(model, start)[0]
  # A row that has read nothing has weights of zero, and is no memory that has faded.
  norm_L = jnp.einsum("bl,b->l", memories.fast_norms(model, out.state), read_B)
  spectra = {name: jnp.einsum("bl,b->l", value_BL, read_B)
             for name, value_BL in memories.spectra(model, out.state).items()}
  for i, block in enumerate(model.with_memory):
    sums |= {f"norm/layer_{block:02d}": norm_L[i], f"start/layer_{block:02d}": start_L[i] * tokens}
    sums |= {f"{name}/layer_{block:02d}": value_L[i] for name, value_L in spectra.items()}
  return out.state, sums


def _is_used(model: lm.LM, name: str) -> bool:
  """Returns whether a number that models report is measured, and means something for the model's rule."""
  if name not in (*MEANS, *RECALL, HALF_LIFE):
    return False
  return name not in USES or USES[name] in memories.memory_rule(model).uses


def result(totals: dict) -> EvalOut:
  """Turns sums over segments into metrics and a line for each block.

  Args:
    totals: what `_segment` gave, added up; {} without any segment.
  """
  tokens = float(totals["tokens"]) if totals else 0.0
  if not tokens:
    return EvalOut({TOKENS: 0.0}, "memory health has no token to be measured on; raise config.data."
                   "held_out_frac or give more documents")
  means = {name: float(total) / tokens for name, total in totals.items() if name != "tokens"}
  layers = sorted(name.removeprefix("start/") for name in means if name.startswith("start/"))
  scalars = {TOKENS: tokens}
  lines = []
  for layer in layers:
    found = _of_block({name.removesuffix(f"/{layer}"): value for name, value in means.items()
                       if name.endswith(f"/{layer}")})
    scalars |= {f"eval/{name}/{layer}": value for name, value in found.items()}
    shown = {name: value for name, value in found.items() if not name.startswith("singular_value_")}
    lines.append(f"memory of {layer}: " + ", ".join(f"{name} {value:.3g}" for name, value in shown.items()))
  gates = [scalars[name] for layer in layers if (name := f"eval/raw_gate_mean/{layer}") in scalars]
  if gates:
    # NumPy's: a gate that is no number makes the least one unknown, whatever the order of blocks.
    scalars["eval/raw_gate_mean_min_layer"] = float(np.min(gates))
  return EvalOut(scalars, "\n".join(lines))


def _of_block(means: dict[str, float]) -> dict[str, float]:
  """Returns the metrics of one block by name."""
  found = {metric: means[name] for name, metric in MEANS.items() if name in means}
  if HALF_LIFE in means:
    found["half_life_tokens"] = math.log(2) / max(means[HALF_LIFE], 1e-9)
  if RECALL[0] in means:
    after, zero = (means[name] for name in RECALL)
    found["inner_loss_ratio"] = after / zero if zero else math.nan
    found |= dict(zip(RECALL, (after, zero)))
  found["memory_norm"] = means["norm"]
  if means["start"] == 0:
    found["memory_norm_in_values"] = means["norm"]
  else:
    found["memory_norm_ratio"] = means["norm"] / means["start"]
  return found | {name: value for name, value in means.items() if name.startswith(SPECTRUM)}
