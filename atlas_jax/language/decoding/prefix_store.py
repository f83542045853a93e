"""States of texts by their ids, so that a text is read on from the longest start that was read before.

A radix tree over blocks of ids: each node is a block of `block_tokens`, its path from the root the text up to
there, and it may hold the state behind that text. States stand at ends of blocks alone, because pieces of
prompts are cut there whoever reads them; so a text may part from another at any id, and what lies between
the last state before that id and the id is read again. Those of different roots (models, tenants) never meet.

The states that were used longest ago make room for new ones, first in memory, then on the disk.
"""
import collections
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from atlas_jax.language.decoding.state_disk import FiledText, StateDisk, StoredState

NODE_BYTES = 400  # Of a node's objects beside its ids and its state.


class Root(NamedTuple):
  """The texts of one model and tenant."""

  key: str  # of all that a state depends on beside the ids, see `ServedModel.state_key`
  grows: bool  # whether a state is made of the parts of all blocks, see `state_parts`


class PrefixMatch(NamedTuple):
  """The longest start of a text that has a state."""

  tokens: int  # of it, a multiple of block_tokens
  states: list[StoredState]  # the parts of all its blocks, or of its last one alone; none for 0 tokens
  shared: int  # ids that the text has in common with one in the tree, as far as whole blocks were kept


class _Node:
  """One block of ids."""

  __slots__ = ("parent", "root", "block", "children", "state", "name", "on_disk")

  def __init__(self, parent: "_Node | None", block: bytes, name: str, root: Root | None = None):
    self.parent = parent
    self.root = root  # Of the first node of a tree, which is no block.
    self.block = block
    self.children: dict[bytes, _Node] = {}
    self.state: StoredState | None = None
    self.name = name  # A checksum of root and path.
    self.on_disk = False

  @property
  def kept(self) -> bool:
    """Returns whether its state is somewhere."""
    return self.state is not None or self.on_disk


class PrefixStore:
  """The tree; for one thread.

  Attributes:
    states: that are kept, in memory or on the disk.
    bytes: of states, ids and nodes in memory; at most `max_bytes` after every call.
    evicted: states that made room, so far.
    refused: states that are larger than the whole store.
  """

  def __init__(self, block_tokens: int, max_bytes: int, disk: StateDisk | None = None):
    """Starts with what is on the disk, or empty."""
    self._block = block_tokens
    self._max_bytes = max_bytes
    self._disk = disk
    self._roots: dict[Root, _Node] = {}
    # Nodes whose state is in memory, and on the disk; the one used last at the end.
    self._used: collections.OrderedDict[_Node, None] = collections.OrderedDict()
    self._filed: collections.OrderedDict[_Node, None] = collections.OrderedDict()
    self.states = 0
    self.bytes = 0
    self.evicted = 0
    self.refused = 0
    if disk is not None:
      self._read_disk(disk)

  def find(self, root: Root, tokens: np.ndarray) -> PrefixMatch:
    """Returns the longest start of a text whose state is kept; it is then used last."""
    top = self._roots.get(root)
    if top is None:
      return PrefixMatch(0, [], 0)
    path = list(self._path(top, tokens))
    shared = len(path) * self._block
    last = path[-1] if path else top
    shared += max((_common(block, tokens[shared:shared + self._block]) for block in last.children), default=0)
    usable = self._usable(root, path)
    if root.grows:
      # The first block whose state is lost ends what can be put together.
      states = []
      for node in usable:
        state = self._state(node)
        if state is None:
          break
        states.append(state)
      usable = usable[:len(states)]
    else:
      states = []
      while usable and not states:
        state = self._state(usable[-1])
        states = [] if state is None else [state]
        usable = usable if states else self._usable(root, usable)
    self._touch(usable if root.grows else usable[-1:])
    self._make_room()
    return PrefixMatch(len(usable) * self._block, states, shared)

  def has(self, root: Root, tokens: np.ndarray) -> bool:
    """Returns whether the state behind a text is kept; its length is a multiple of block_tokens."""
    path = list(self._path(self._roots[root], tokens)) if root in self._roots else []
    return len(path) * self._block == len(tokens) and bool(path) and path[-1].kept

  def put(self, root: Root, tokens: np.ndarray, state: StoredState) -> None:
    """Keeps the state behind a text, or, where states grow, the part of its last block.

    Args:
      root: of the text.
      tokens: int32, all ids of the text, a multiple of block_tokens, at least one block.
      state: behind them; its arrays must not change any more.
    """
    assert len(tokens) and len(tokens) % self._block == 0
    if state.bytes > self._max_bytes:
      self.refused += 1
      return
    top = self._top(root)
    path = list(self._path(top, tokens))
    if root.grows and not (len(path) * self._block >= len(tokens) - self._block
                           and all(node.kept for node in path[:len(tokens) // self._block - 1])):
      self._prune(top)
      return  # A part alone stands for nothing: those before it have made room already.
    for at in range(len(path) * self._block, len(tokens), self._block):
      path.append(self._grow(path[-1] if path else top, tokens[at:at + self._block].tobytes()))
    node = path[-1]
    self.states += not node.kept
    if node.state is None:
      node.state = state
      self.bytes += state.bytes
    if self._disk is not None and not node.on_disk:
      own = tokens[-self._block:] if root.grows else tokens
      text = FiledText(node.name, root.key, root.grows, node.parent.name if node.parent else "",
                       len(tokens) // self._block, self._block, own)
      node.on_disk = self._disk.write(text, state)
    self._touch(path if root.grows else path[-1:])
    self._make_room()

  def _top(self, root: Root) -> _Node:
    """Returns the first node of a root's tree."""
    found = self._roots.get(root)
    if found is None:
      found = self._roots[root] = _Node(None, b"", hashlib.sha256(root.key.encode()).hexdigest(), root)
      self.bytes += NODE_BYTES
    return found

  def _path(self, top: _Node, tokens: np.ndarray) -> Iterator[_Node]:
    """Yields the nodes of a text as far as they are there."""
    node = top
    for at in range(0, len(tokens) - self._block + 1, self._block):
      found = node.children.get(tokens[at:at + self._block].tobytes())
      if found is None:
        return
      node = found
      yield node

  def _usable(self, root: Root, path: list[_Node]) -> list[_Node]:
    """Returns the part of a path up to the last state that can be put together."""
    if root.grows:
      lost = next((at for at, node in enumerate(path) if not node.kept), len(path))
      return path[:lost]
    return path[:max((at + 1 for at, node in enumerate(path) if node.kept), default=0)]

  def _grow(self, parent: _Node, block: bytes) -> _Node:
    name = hashlib.sha256(parent.name.encode() + block).hexdigest()
    node = _Node(parent, block, name)
    parent.children[block] = node
    self.bytes += NODE_BYTES + len(block)
    return node

  def _state(self, node: _Node) -> StoredState | None:
    """Returns the state of a node, from the disk if need be; None where that has lost it."""
    if node.state is None and self._disk is not None:
      node.state = self._disk.read(node.name)
      if node.state is None:
        self._unfile(node)
      else:
        self.bytes += node.state.bytes
    return node.state

  def _touch(self, nodes: list[_Node]) -> None:
    """Marks nodes as used last, a parent behind its children, so that what grows loses its ends first."""
    for node in reversed(nodes):
      for kept in (node.state is not None and self._used, node.on_disk and self._filed):
        if kept is not False:
          kept[node] = None
          kept.move_to_end(node)

  def _make_room(self) -> None:
    # Nodes of states on the disk stay; they alone are small.
    while self.bytes > self._max_bytes and self._used:
      node, _ = self._used.popitem(last=False)
      assert node.state is not None
      self.bytes -= node.state.bytes
      node.state = None
      self.evicted += 1
      self._lost(node)
    while self._disk is not None and self._disk.is_over and self._filed:
      node, _ = self._filed.popitem(last=False)
      self._disk.delete(node.name)
      node.on_disk = False
      self._lost(node)

  def _unfile(self, node: _Node) -> None:
    self._filed.pop(node, None)
    node.on_disk = False
    self._lost(node)

  def _lost(self, node: _Node) -> None:
    """Counts a state that is neither in memory nor on the disk any more."""
    if not node.kept:
      self.states -= 1
      self._prune(node)

  def _prune(self, node: _Node) -> None:
    """Takes away a node that holds nothing, and those above it that then hold nothing."""
    while node.parent is not None and not node.kept and not node.children:
      del node.parent.children[node.block]
      self.bytes -= NODE_BYTES + len(node.block)
      node = node.parent
    # Clients name their users as they like, so that roots without texts must not stay.
    if node.root in self._roots and not node.children:
      del self._roots[node.root]
      self.bytes -= NODE_BYTES

  def _read_disk(self, disk: StateDisk) -> None:
    """Takes in what an earlier process wrote, as used in the order of the files' times."""
    names = {}
    for file in disk.files():  # From the shortest text on, and each behind those it needs.
      root = Root(file.key, file.grows)
      top = self._top(root)
      node = names.get(file.parent) if root.grows and file.parent != top.name else top
      if node is None or file.block_tokens != self._block:
        disk.delete(file.name)  # Of other settings, or what it grows from is gone.
        self._prune(top)
        continue
      for at in range(0, len(file.tokens), self._block):
        block = file.tokens[at:at + self._block].tobytes()
        node = node.children.get(block) or self._grow(node, block)
      if node.name != file.name:
        disk.delete(file.name)
        self._prune(node)
        continue
      node.on_disk = True
      self.states += 1
      names[file.name] = node
    order = sorted(((disk.used_at(name), node) for name, node in names.items()), key=lambda pair: pair[0])
    for _, node in order:
      path = [node]
      while node.parent is not None and node.parent.parent is not None:
        node = node.parent
        path.insert(0, node)
      self._touch(path)
    self._make_room()


def _common(block: bytes, tokens: np.ndarray) -> int:
  """Returns how many ids at the start of a block those of a text equal."""
  ids = np.frombuffer(block, np.int32)[:len(tokens)]
  differ = np.flatnonzero(ids != tokens)
  return int(differ[0]) if len(differ) else len(ids)
