"""Faults of the original in the forward pass: our model, with some of its functions replaced when called."""
import contextlib
from unittest import mock

import jax
import jax.numpy as jnp

from atlas_jax.memory.layer import Memory
from atlas_jax.models import lm
from atlas_jax.models.blocks import gate, none
from atlas_jax.models.mixing import BlockState

# Faults that a model has in training alone: it cannot be used with them, since a text has no end yet.
IN_TRAINING = ("look_ahead",)


class LookAheadMemory(Memory):
  """A memory that is written by the whole call first, and then read by all of its tokens."""

  def _read_packed(self, rule, running, learned, tokens, gates, doc_BT, write_BT, read_BT, *at_ends):
    running, out = super()._read_packed(rule, running, learned, tokens, gates, doc_BT, write_BT, read_BT,
                                        *at_ends)
    # Over rows, then heads: one state for all tokens of a row, of whatever document, as the original has it.
    read = jax.vmap(jax.vmap(rule.apply), in_axes=(None, 0, 0))
    recalled_BHTM = read(learned.slow, running.base, tokens.q)
    return running, out._replace(out_CM=recalled_BHTM * read_BT[:, None, :, None].astype(recalled_BHTM.dtype))


def clamped(raw_BTH, floor):
  """Returns the gate, no less than the floor; below it without a gradient."""
  return jnp.maximum(raw_BTH, floor)


def mix_convex(layer_type, fields, h_BTD, state: BlockState, call):
  """Returns what `gate.mix_layer` does, with attention times 1 minus the gate, a mean over heads."""
  mixed_BTD, attention, qkv_BTHE = none.attend(fields, h_BTD, state, call)
  parts = gate.parts_of(fields, layer_type)
  seen = []

  def noting(x_BTD, floor):
    seen.append(parts.gate(x_BTD, floor))
    return seen[-1]

  recalled_BTD, memory, stats = gate.recall(parts._replace(gate=noting), h_BTD, state.memory, call,
                                            fields.mode, qkv_BTHE)
  kept_BT1 = 1 - jnp.mean(seen[0][0], axis=-1, keepdims=True)
  mixed_BTD = mixed_BTD * kept_BT1.astype(mixed_BTD.dtype) + recalled_BTD
  return mixed_BTD, BlockState(attention, memory), stats


REPLACED = {"look_ahead": ("Memory", LookAheadMemory), "clamp": ("floored", clamped),
            "convex": ("mix_layer", mix_convex)}


class FaultyLM(lm.LM):
  """A model with faults.

  Attributes:
    faults: names in REPLACED.
  """

  faults: tuple[str, ...] = ()

  def __call__(self, *args, **given):
    """Reads as `lm.LM` does, with the faults in place while it is traced."""
    with contextlib.ExitStack() as stack:
      for fault in self.faults:
        stack.enter_context(mock.patch.object(gate, *REPLACED[fault]))
      return super().__call__(*args, **given)


def with_faults(model: lm.LM, faults) -> FaultyLM:
  """Returns a model of the same fields and parameters with those of the faults that are in REPLACED."""
  own = lm.LM.__dataclass_fields__.keys() - {"parent", "name"}
  fields = {name: getattr(model, name) for name in own}
  return FaultyLM(**fields, faults=tuple(name for name in faults if name in REPLACED))
