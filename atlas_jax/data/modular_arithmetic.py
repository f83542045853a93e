"""Modular arithmetic as a source of batches: all equations a + b = c modulo a number, a part held out.

  --config.data.source=modular_arithmetic --config.data.options.modulus=97

A row is the document mark, a, the operation, b and "=", each one byte, then padding; its only target that
counts is c, behind "=". c stands in no input. A residue r is the byte r, so that the byte tokenizer and its
vocabulary serve; operations and "=" are bytes that no residue uses.

All pairs (a, b) are split by the seed: config.data.held_out_frac of them are never trained on, nor is (b, a)
in sums and products. A network can learn the others by heart long before it finds the rule, and only held-out
pairs tell the two apart.

Source: Power et al. 2022, arXiv:2201.02177.
"""
from collections.abc import Mapping

import numpy as np

from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.packing import LAST_INT32
from atlas_jax.data.stepped import ListedSource, rows_of
from atlas_jax.fields import nearest

BATCH = ("tokens_BT", "targets_BT", "weight_BT", "doc_BT", "pos_BT", "bytes_BT")
OPERATIONS = {"add": 251, "sub": 252, "mul": 253, "div": 254}  # The byte that stands between a and b.
EQUALS = 255
MOST = min(OPERATIONS.values())  # Residues are bytes below it.
LENGTH = 5  # Tokens of an equation: the mark, a, the operation, b, "=".
DEFAULTS = {"modulus": 97, "operation": "add"}
COMMUTES = ("add", "mul")
SPLIT_STREAM, ORDER_STREAM = 1, 2  # Draw the split, and the order of held-out ones, apart from all else.


def equations(modulus: int, operation: str) -> np.ndarray:
  """Returns (a, b, c) of every equation of an operation, [pairs, 3] int32; none divides by 0.

  Raises:
    ValueError: if the modulus has too many residues, or an operation is unknown or undefined for it.
  """
  if not 2 <= modulus <= MOST:
    raise ValueError(f"config.data.options.modulus={modulus} must be from 2 to {MOST}: a residue is one byte")
  if operation not in OPERATIONS:
    raise ValueError(f"config.data.options.operation={operation!r}; {nearest(operation, OPERATIONS)}")
  a, b = (x.reshape(-1) for x in np.meshgrid(np.arange(modulus), np.arange(modulus), indexing="ij"))
  if operation == "div":
    if any(modulus % factor == 0 for factor in range(2, int(modulus**0.5) + 1)):
      raise ValueError(f"config.data.options.modulus={modulus} is no prime, and operation='div' needs one: "
                       "else some numbers have no inverse")
    a, b = a[b > 0], b[b > 0]
    inverse = np.array([0] + [pow(x, -1, modulus) for x in range(1, modulus)])
    c = a * inverse[b]
  else:
    c = {"add": a + b, "sub": a - b, "mul": a * b}[operation]
  return np.stack([a, b, c % modulus], axis=1).astype(np.int32)


def split_of(equations_N3: np.ndarray, operation: str, *, held_out_frac: float, seed: int,
             split: str) -> np.ndarray:
  """Returns the equations of a split, in the order of all.

  Args:
    equations_N3: all of an operation.
    operation: which; where a and b may change places, (a, b) and (b, a) are of the same split.
    held_out_frac: fraction that is held out.
    seed: draws which.
    split: "train" or "held_out".

  Raises:
    ValueError: if no equation is left for the split.
  """
  # A model that adds up the embeddings of a and b answers (b, a) as soon as it knows (a, b) by heart.
  sides_N2 = np.sort(equations_N3[:, :2], axis=1) if operation in COMMUTES else equations_N3[:, :2]
  kinds, kind_N = np.unique(sides_N2, axis=0, return_inverse=True)
  order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(len(kinds))
  held_out = order[:round(held_out_frac * len(kinds))]
  chosen_N3 = equations_N3[np.isin(kind_N.reshape(-1), held_out) == (split != "train")]
  if not len(chosen_N3):
    raise ValueError(f"config.data.held_out_frac={held_out_frac} leaves none of {len(equations_N3)} "
                     f"equations for the split {split!r}; take a fraction between 0 and 1")
  return chosen_N3


class ModularArithmetic(ListedSource):
  """Equations in an order drawn anew in every epoch, or the held-out ones once."""

  def __init__(self, equations_N3: np.ndarray, operation: str, settings: Mapping, rows: range, *,
               doc_id: int, segment_len: int, batch_rows: int, seed: int | None):
    """Makes the source.

    Args:
      equations_N3: a, b and c of the equations of the split.
      operation: of all of them.
      settings: by which a step means the same batch.
      rows: this process's rows of the whole batch.
      doc_id: the document mark.
      segment_len: tokens of a row.
      batch_rows: rows of the whole batch.
      seed: draws the orders, without end; None reads the equations once.
    """
    self._equations_N3 = equations_N3
    self._between = OPERATIONS[operation]
    self._doc_id = doc_id
    self._segment_len = segment_len
    super().__init__(settings, rows, count=len(equations_N3), batch_rows=batch_rows, seed=seed)

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step; see `packing.read_row` for the arrays."""
    items = [self.item(step, row) for row in self._mine]
    real_B1 = np.array([item is not None for item in items])[:, None]
    a_B, b_B, c_B = self._equations_N3[[item or 0 for item in items]].T
    size = (len(items), self._segment_len)
    here_BT = real_B1 & (np.arange(self._segment_len) < LENGTH)[None]
    answers_BT = real_B1 & (np.arange(self._segment_len) == LENGTH - 1)[None]
    mark_B = np.full(len(items), self._doc_id)
    written_BS = np.stack([mark_B, a_B, np.full_like(mark_B, self._between), b_B,
                           np.full_like(mark_B, EQUALS), c_B], axis=1)
    tokens_BT, targets_BT = np.full((2, *size), self._doc_id, np.int32)
    tokens_BT[:, :LENGTH] = np.where(real_B1, written_BS[:, :-1], self._doc_id)
    targets_BT[:, :LENGTH] = np.where(real_B1, written_BS[:, 1:], self._doc_id)
    # Every row is a document of its own, also against the row of the step before it.
    doc_B1 = (step * self._batch_rows + np.array(self._mine)[:, None]) % LAST_INT32
    return {"tokens_BT": tokens_BT, "targets_BT": targets_BT, "weight_BT": answers_BT.astype(np.float32),
            "doc_BT": np.where(here_BT, doc_B1, -1).astype(np.int32),
            "pos_BT": np.where(here_BT, np.arange(self._segment_len), 0).astype(np.int32),
            "bytes_BT": answers_BT.astype(np.int32)}

  def origin(self, step: int, row: int) -> str:
    """Names the equation of a row."""
    item = self.item(step, row)
    if item is None:
      return "modular_arithmetic: padding@0"
    a, b, _ = self._equations_N3[item]
    return f"modular_arithmetic: a={a}, b={b}@0"


def make(*, seed: int, options: Mapping, segment_len: int, batch_rows: int, tokenizer: str = "byte",
         held_out_frac: float = 0.5, split: str = "train", max_tokens: int | None = None,
         process_index: int = 0, process_count: int = 1) -> ModularArithmetic:
  """Builds the source; see `data.source.load`.

  Args:
    seed: draws the split and the orders.
    options: "modulus", 97 unless given, and "operation": "add", which is the default, "sub", "mul" or "div".
    segment_len: tokens of a row, at least those of an equation.
    batch_rows: rows of a batch, over all processes.
    tokenizer: "byte", since a residue is one byte.
    held_out_frac: fraction of all pairs that are never trained on.
    split: "train", without end, or "held_out", once.
    max_tokens: of a held-out split: places to read at most, padding included; None: all.
    process_index, process_count: whose rows these are, see `stepped.rows_of`.

  Raises:
    ValueError: for an option that is unknown or cannot be, a row that is too short, another tokenizer.
  """
  field = "config.data.batch_rows" if split == "train" else "config.eval.batch_rows"
  rows = rows_of(batch_rows, process_index, process_count, field=field)
  for name in options:
    if name not in DEFAULTS:
      raise ValueError(f"config.data.options.{name}={options[name]} is no option of config.data.source="
                       f"'modular_arithmetic'; {nearest(name, DEFAULTS)}")
  if segment_len < LENGTH:
    raise ValueError(f"config.data.segment_len={segment_len} is too short for an equation; it needs {LENGTH}")
  if tokenizer != "byte":
    raise ValueError(f"config.data.tokenizer={tokenizer!r}: config.data.source='modular_arithmetic' writes a "
                     "residue as one byte; set --config.data.tokenizer=byte")
  given = {**DEFAULTS, **options}
  all_N3 = equations(_whole(given["modulus"]), given["operation"])
  chosen_N3 = split_of(all_N3, given["operation"], held_out_frac=held_out_frac, seed=seed, split=split)
  if split != "train":  # In an order of their own, so that the first ones are of all kinds.
    chosen_N3 = np.random.default_rng([seed, ORDER_STREAM]).permutation(chosen_N3)
    chosen_N3 = chosen_N3[:None if max_tokens is None else max(1, max_tokens // segment_len)]
  settings = {**given, "held_out_frac": held_out_frac, "split": split, "split_seed": seed,
              "segment_len": segment_len}
  return ModularArithmetic(chosen_N3, given["operation"], settings, rows,
                           doc_id=tokenizers.load(tokenizer).doc_id, segment_len=segment_len,
                           batch_rows=batch_rows, seed=seed if split == "train" else None)


def _whole(modulus) -> int:
  # From a flag it may come as a text: options have no type of their own.
  try:
    return int(str(modulus))
  except ValueError:
    raise ValueError(f"config.data.options.modulus={modulus!r} must be a whole number") from None
