"""The memories of a language model from outside: what they have learned, and states that hold something else.

`model` is a `models.lm.LM`, and `state` an `LMState` of it, as a call returned it.
"""
import functools

import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory import scan, spectrum
from atlas_jax.memory.layer import Memory
from atlas_jax.memory.types import Learned, Running


def learned_memory(model, params) -> Learned:
  """Returns what the memories have learned, every leaf [blocks with a memory, ...]; heads come next."""
  taken = [stack for stack in model.stacks if stack.memories]

  def join(*leaves):
    return jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0]

  if model.first_inner is not None:
    return Learned(jax.tree.map(join, *[params[stack.name]["fast_mlp"] for stack in taken]), {})
  layers = [params[stack.name]["memory"] for stack in taken]
  slow = [layer["slow"] if "slow" in layer else {} for layer in layers]
  if "initial_fast" in layers[0]:
    fast = jax.tree.map(join, *[layer["initial_fast"] for layer in layers])
  else:
    def repeat(w):
      return jnp.broadcast_to(w, (len(model.with_memory), *w.shape))

    fast = jax.tree.map(repeat, Memory(**model.memory, parent=None).zero_fast())
  return Learned(fast, jax.tree.map(join, *slow))


def with_learned(model, params, learned: Learned):
  """Returns parameters whose memories have learned something else; `learned` as of `learned_memory`.

  Fast weights take effect where memories start from learned ones.
  """
  changed = dict(params)
  parts = {"initial_fast": learned.fast, "slow": learned.slow}
  for stack in (stack for stack in model.stacks if stack.memories):
    block = params[stack.name]
    place = slice(stack.memories.start, stack.memories.stop)
    if model.first_inner is not None:
      changed[stack.name] = {**block, "fast_mlp": _at(learned.fast, place)}
      continue
    own = {name: _at(part, place) for name, part in parts.items() if name in block["memory"]}
    changed[stack.name] = {**block, "memory": {**block["memory"], **own}}
  return changed


def _at(part, place: slice):
  return jax.tree.map(lambda x: x[place], part)


def emptied(model, learned: Learned) -> Learned:
  """Returns what memories that hold nothing start from; `learned` as of `learned_memory`."""
  if model.first_inner is not None:
    return jax.tree.map(jnp.zeros_like, learned)
  return memory_rule(model).empty(learned)


def memory_rule(model):
  """Returns the rule of a model's memories."""
  return Memory(**model.memory, parent=None).build_rule()


def started(model, learned: Learned, state):
  """Puts the memories of every row to where something learned starts them; all else stays.

  Forgetting the document instead (doc_B = NO_DOC) would also cut the convolutions off from the tokens before.
  """
  def repeat(new, leaf):
    return jnp.broadcast_to(new[None].astype(leaf.dtype), leaf.shape)

  if model.first_inner is not None:
    return state._replace(memory=state.memory._replace(fast=jax.tree.map(repeat, learned.fast,
                                                                         state.memory.fast)))
  start = jax.vmap(jax.vmap(functools.partial(scan.start, memory_rule(model))))  # Over depth and heads.
  fresh = start(learned)
  running = Running(fresh.memory, fresh.base, fresh.position[:, 0])  # One position for all heads of a layer.
  layer = model.mix.layer_of(state.memory)
  layer = layer._replace(running=jax.tree.map(repeat, running, layer.running))
  return state._replace(memory=_with_layer(model, state.memory, layer))


def swapped(model, state):
  """Returns the state with every row having the memories of the row before it."""
  def roll(tree):
    return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), tree)

  if model.first_inner is not None:
    return state._replace(memory=state.memory._replace(fast=roll(state.memory.fast)))
  layer = model.mix.layer_of(state.memory)
  layer = layer._replace(running=roll(layer.running))
  return state._replace(memory=_with_layer(model, state.memory, layer))


def fast_norms(model, state):
  """Returns the norm of the fast weights of each row, a mean over heads; [B, blocks with a memory]."""
  if model.first_inner is not None:
    return _norms(state.memory.fast, 2)
  fast = model.mix.layer_of(state.memory).running.memory.fast
  return jnp.mean(_norms(fast, 3), axis=2)


def spectra(model, state) -> dict:
  """Returns what `spectrum.measure` does of the fast weights of each row; name -> [B, blocks with a memory].

  Means over heads. Fast weights that are no matrices, such as biases, are left out; {} if none is one.
  """
  lead = 2 if model.first_inner is not None else 3
  fast = state.memory.fast if lead == 2 else model.mix.layer_of(state.memory).running.memory.fast
  matrices = {name: w for name, w in tree.named_leaves(fast) if w.ndim == lead + 2}
  if not matrices:
    return {}
  found = spectrum.measure(matrices)
  return found if lead == 2 else jax.tree.map(lambda x_BLH: jnp.mean(x_BLH, axis=2), found)


def _norms(fast, lead: int):
  """Returns norms over all axes but the first ones."""
  return jnp.sqrt(sum(jnp.sum(w * w, tuple(range(lead, w.ndim))) for w in jax.tree.leaves(fast)))


def _with_layer(model, memory, layer):
  """Puts states of memory layers, [B, blocks, ...], in place of those that are."""
  return jax.vmap(model.mix.with_layer, in_axes=1, out_axes=1)(memory, layer)
