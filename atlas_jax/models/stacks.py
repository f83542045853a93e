"""Stacks of blocks that are alike, and the states of their layers, whose leaves lead with B, then depth."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory.statistics import USAGE
from atlas_jax.models.mixing import BlockState, Call


class Stack(NamedTuple):
  """Blocks one above the other that are alike."""

  name: str  # of their parameters, which lead with their number
  first: int
  end: int
  attentions: range  # indices of their attention states among all such states; empty where they have none
  memories: range  # indices of their memories among all memories; empty where they have none


class Read(NamedTuple):
  """The outcome of reading with stacks."""

  x_BTD: jax.Array
  attention: Any  # [B, blocks with attention, ...]
  memory: Any  # [B, blocks with a memory, ...]
  stats: dict  # NAME/layer_00 and so on -> []
  usage: dict  # NAME -> [blocks with a memory], with a gradient, see `models.lm.LMOut`


def split(depth: int, with_attention: Sequence[int], with_memory: Sequence[int]) -> list[Stack]:
  """Returns the stacks of blocks; all blocks are one, "blocks", if all or none have a memory."""

  def stack(name: str, first: int, end: int) -> Stack:
    attentions = range(*(_below(with_attention, block) for block in (first, end)))
    memories = range(*(_below(with_memory, block) for block in (first, end)))
    return Stack(name, first, end, attentions, memories)

  if len(with_memory) in (0, depth):
    return [stack("blocks", 0, depth)]
  # One loop over depth needs blocks with the same parameters and states: where memories are in some blocks
  # alone, each run of alike blocks is a loop of its own.
  borders = [i for i in range(1, depth) if (i in with_memory) != (i - 1 in with_memory)]
  return [stack(f"blocks_{first}", first, end) for first, end in zip([0, *borders], [*borders, depth])]


def _below(chosen: Sequence[int], block: int) -> int:
  """Returns how many of the chosen blocks come before one."""
  return sum(one < block for one in chosen)


def read(stacks: Sequence[Stack], blocks_of: Callable, x_BTD, attention, memory, call: Call) -> Read:
  """Reads with stacks in their order.

  Args:
    stacks: from any block on.
    blocks_of: stack -> function (x_BTD, BlockState, Call) -> (x_BTD, (BlockState, stats)).
    x_BTD: what enters the first of them.
    attention, memory: states of the blocks of these stacks alone; both may be lists with that of each stack,
      and what is returned is then, too.
    call: shared by all.
  """
  apart = isinstance(attention, list)
  attentions = []
  memories = []
  stats: dict = {}
  usage: dict[str, list] = {}
  for at, stack in enumerate(stacks):
    before = BlockState(attention[at], memory[at]) if apart else BlockState(
        _layers(attention, stack.attentions, stacks[0].attentions.start),
        _layers(memory, stack.memories, stacks[0].memories.start))
    x_BTD, (after, found) = blocks_of(stack)(x_BTD, before, call)
    attentions += [after.attention] if stack.attentions or apart else []
    memories += [after.memory] if stack.memories or apart else []
    stats |= {f"{name}/layer_{stack.first + i:02d}": value_L[i]
              for name, value_L in found.items() if not name.startswith(USAGE)
              for i in range(len(stack.memories))}
    for name in found:
      if name.startswith(USAGE):
        usage.setdefault(name.removeprefix(USAGE), []).append(found[name])
  used = {name: jnp.concatenate(parts) for name, parts in usage.items()}
  if apart:
    return Read(x_BTD, attentions, memories, stats, used)
  return Read(x_BTD, joined(attentions), joined(memories), stats, used)


def split_state(memory, stacks: Sequence[Stack]) -> list:
  """Returns the memories of each of all stacks, leaves [L, B, ...]; () where it has none."""
  def deep_first(x):
    return jnp.moveaxis(x, 1, 0)

  return [jax.tree.map(deep_first, _layers(memory, stack.memories, 0)) for stack in stacks]


def repeat_layers(state, count: int):
  """Repeats the state of one block for `count` of them, in an axis behind B; () where there are none."""
  return jax.tree.map(lambda x: jnp.repeat(x[:, None], count, axis=1), state) if count else ()


def _layers(state, taken: range, first: int):
  """Takes some layers of a state that begins with layer `first`; () where none are taken."""
  return jax.tree.map(lambda x: x[:, taken.start - first:taken.stop - first], state) if taken else ()


def joined(states: list):
  """Joins the states of stacks along depth."""
  if len(states) < 2:
    return states[0] if states else ()
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *states)
