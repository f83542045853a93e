"""Memory gain: how much worse held-out text is predicted without what memory holds from earlier segments.

A gain is a mean over tokens; how far it can be trusted says its interval, over documents drawn anew.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, bootstrap, held_out
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.memory import scan
from atlas_jax.memory.layer import NO_DOC, Memory
from atlas_jax.memory.types import Running
from atlas_jax.models import lm

ABLATIONS = ("reset", "swapped", "gate_zero")
COUNTED = {"reset": "memory_gain", "swapped": "memory_gain_swapped"}  # The third counts what the first does.


def make(model: lm.LM, source_factory, mesh: Mesh, *, max_tokens: int | None = None,
         block_tokens: int | None = None):
  """Makes the evaluation.

  In every segment, the tokens of the document that began in an earlier one are scored four times: as the
  model is; "reset": the memory's fast weights stand at their learned start when the segment begins;
  "swapped": they are those of another row; "gate_zero": nothing of the memory enters in this segment.
  Attention's window and the memory's short convolutions go on as they were in all four, and the next segment
  gets the state of the model as it is.

  Args:
    model: one with a memory.
    source_factory: gives a fresh source of held-out batches, see `held_out.batches`.
    mesh: over which rows are split.
    max_tokens: see `held_out.batches`; None reads all.
    block_tokens: tokens whose logits exist at the same time, see `vocab_loss`.

  Returns:
    run(params, *, step) -> EvalOut with "eval/memory_gain_NAME_nats", the mean over tokens of the loss under
    the ablation minus that of the model as it is; its interval "eval/memory_gain_NAME_nats_low" and "_high",
    see `bootstrap.interval_of_mean`, over documents (the parts of one that is cut between two rows count as
    two); and of how many tokens and documents, "eval/memory_gain_tokens", "eval/memory_gain_documents" and,
    as rows whose partner has read nothing are left out there, "eval/memory_gain_swapped_tokens" and
    "eval/memory_gain_swapped_documents". A gain without tokens, or an interval of one document, is absent
    and the text says so.

  Raises:
    ValueError: if the model has no memory; from `run`, if the batch has one row, and no other to swap with.
  """
  if model.memory_mix == "none":
    raise ValueError("config.model.memory_mix='none' leaves no memory to measure; take memory_gain "
                     "out of the evals")
  segment = functools.partial(_segment, model, block_tokens)
  segment_step = held_out.make_step(segment, mesh)

  def run(params, *, step: int, tables=(), workdir=None) -> EvalOut:
    del step
    found = held_out.segments(segment_step, params, model, source_factory(), mesh, max_tokens=max_tokens)
    return _result(_by_document(found))

  return run


def _segment(model: lm.LM, block_tokens, params, state: lm.LMState, batch: dict):
  if state.doc_B.shape[0] < 2:
    raise ValueError("config.eval.batch_rows=1 leaves no other row whose memory could be swapped in; use 2 "
                     "or more")

  def read(variant):
    state, memory_scale = variant
    out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                      memory_scale=memory_scale, mode="packed")
    _, _, nll_BT = next_token_loss(out.hidden_BTD, lm.head_weights(params), batch["targets_BT"],
                                   batch["weight_BT"], block_tokens=block_tokens)
    return out.state, nll_BT

  states = (state, fresh_memory(model, params, state), other_memory(state), state)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  # A loop compiles the model once, not four times.
  ends, nlls = jax.lax.map(read, (stacked, jnp.array([1.0, 1.0, 1.0, 0.0])))
  weight_BT = jnp.where(batch["doc_BT"] == state.doc_B[:, None], batch["weight_BT"], 0).astype(nlls.dtype)
  partner_B = (jnp.roll(state.doc_B, 1) != NO_DOC).astype(nlls.dtype)
  counted = {name: weight_BT * partner_B[:, None] if name == "swapped" else weight_BT for name in ABLATIONS}
  sums = {"doc_B": state.doc_B}  # What counts of a row is of this one document.
  for name, nll_BT in zip(ABLATIONS, nlls[1:]):
    sums[f"{name}_nats_B"] = jnp.sum((nll_BT - nlls[0]) * counted[name], axis=1)
    sums[f"{name}_tokens_B"] = jnp.sum(counted[name], axis=1)
  return jax.tree.map(lambda leaf: leaf[0], ends), sums


def fresh_memory(model: lm.LM, params, state: lm.LMState) -> lm.LMState:
  """Puts the fast weights of every row back to where the parameters start them; all else stays.

  Forgetting the document instead (doc_B = NO_DOC) would also cut the convolutions off from the tokens before.
  """
  rule = Memory(**model.memory, parent=None).the_rule()
  start = jax.vmap(jax.vmap(functools.partial(scan.start, rule)))  # Over depth and heads.
  fresh = start(lm.learned_memory(model, params))
  running = Running(fresh.memory, fresh.base, fresh.position[:, 0])  # One position for all heads of a layer.
  old = state.memory.running
  repeat = lambda new, leaf: jnp.broadcast_to(new[None].astype(leaf.dtype), leaf.shape)
  rows = jax.tree.map(repeat, running, old)
  return state._replace(memory=state.memory._replace(running=rows))


def other_memory(state: lm.LMState) -> lm.LMState:
  """Gives every row the fast weights of the row before it; all else stays."""
  running = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), state.memory.running)
  return state._replace(memory=state.memory._replace(running=running))


def _by_document(segments) -> dict:
  """Adds up (nats, tokens) of each ablation for each document, named by its row and number."""
  found: dict[str, dict] = {name: {} for name in ABLATIONS}
  for sums in segments:
    for name, documents in found.items():
      nats_B, tokens_B = sums[f"{name}_nats_B"], sums[f"{name}_tokens_B"]
      for row in np.flatnonzero(tokens_B):
        at = int(row), int(sums["doc_B"][row])
        nats, tokens = documents.get(at, (0.0, 0.0))
        documents[at] = nats + float(nats_B[row]), tokens + float(tokens_B[row])
  return found


def _result(found: dict) -> EvalOut:
  scalars, lines = {}, []
  for name, documents in found.items():
    nats_N, tokens_N = np.array(list(documents.values()), np.float64).reshape(-1, 2).T
    metric = f"eval/memory_gain_{name}_nats"
    if len(nats_N):
      scalars[metric] = float(nats_N.sum() / tokens_N.sum())
    if (interval := bootstrap.interval_of_mean(nats_N, tokens_N)) is not None:
      scalars[f"{metric}_low"], scalars[f"{metric}_high"] = interval
    if name in COUNTED:
      scalars[f"eval/{COUNTED[name]}_tokens"] = float(tokens_N.sum())
      scalars[f"eval/{COUNTED[name]}_documents"] = float(len(nats_N))
  absent = [name for name in ABLATIONS if not found[name]]
  single = [name for name in ABLATIONS if len(found[name]) == 1]
  if absent:
    lines.append(f"memory gain ({', '.join(absent)}) has no token to be measured on: no held-out document "
                 "goes on into a second segment; lower config.data.segment_len or give longer documents")
  if single:
    lines.append(f"memory gain ({', '.join(single)}) is measured on one document alone and has no interval; "
                 "hold out more documents (config.data.held_out_frac), or raise config.eval.gain_max_tokens")
  return EvalOut(scalars, "\n".join(lines))
