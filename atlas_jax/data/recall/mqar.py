"""Multi-query associative recall: pairs of a key and a value, filler, then keys whose values are asked for.

  k3 v1 k0 v7 ... k5 v2 . . . . k0 k5 k3 ...

Keys of a text differ, values are drawn one by one, and no token is both. Every key is asked for once, and no
answer is ever shown. Answered by greedy decoding.

Source: Arora et al. 2023, Zoology, arXiv:2312.04927; they ask at distances of a power law.
"""
import numpy as np

from atlas_jax.data.recall import options, sample
from atlas_jax.defaults.recall import MOST_PAIRS

AXES = ("pairs", "distance")
READS = ("mqar_pairs", "mqar_distances", "mqar_symbols")
FILLERS = 16  # Symbols of the filler: many, so that a memory need not hold one key a hundred times.


def cells(setting) -> list[dict]:
  """Returns each number of pairs at each distance."""
  found = setting.options
  return [{"pairs": pairs, "distance": distance} for pairs in found["mqar_pairs"]
          for distance in found["mqar_distances"]]


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text; its filler may be some tokens longer than the distance, to fill a chunk."""
  pairs = cell["pairs"]
  symbols = setting.options["mqar_symbols"]
  if pairs > symbols:
    raise ValueError(f"config.eval.mqar_pairs has a text of {pairs} pairs, and config.eval.mqar_symbols="
                     f"{symbols} are all the keys there are; raise it, or take fewer pairs")
  every = sample.symbols(setting, 2 * MOST_PAIRS + FILLERS)
  # A key or value has one id whatever the number of symbols, so that one model can be asked with any.
  ids = np.r_[every[:symbols], every[MOST_PAIRS:MOST_PAIRS + symbols]]
  batch = sequences(draw, rows=1, pairs=pairs, keys=symbols, times=1)
  pairs_T = ids[batch["tokens_BT"][0, :2 * pairs]]
  length = 1 + 2 * pairs + cell["distance"]
  count = options.room(setting, length, 2 * pairs, "mqar_distances")
  filler_T = every[2 * MOST_PAIRS + draw.integers(FILLERS, size=count)]
  keys_N = batch["tokens_BT"][0, 2 * pairs:]
  values_N = ids[batch["targets_BT"][0, 2 * pairs:]]
  shown_at = {key: at for at, key in enumerate(batch["tokens_BT"][0, 0:2 * pairs:2])}
  distance_N = [2 * (pairs - shown_at[key]) - 2 + count + at + 1 for at, key in enumerate(keys_N)]
  question = [(ids[key], value, at) for at, (key, value) in enumerate(zip(keys_N, values_N))]
  return sample.in_symbols(setting, np.r_[pairs_T, filler_T], question, distance_N)


def chance(cell, setting) -> float:
  """Returns one in the number of values."""
  del cell
  return 1 / setting.options["mqar_symbols"]


def sequences(draw: np.random.Generator, *, rows: int, pairs: int, keys: int, times: int) -> dict:
  """Draws sequences of pairs, then of questions; tokens below `keys` are keys, the next `keys` values.

  Args:
    draw: random generator.
    rows: how many.
    pairs: of each, at most `keys`.
    keys: to choose from.
    times: each key is asked for, in an order of its own each time.

  Returns:
    tokens_BT, targets_BT, pos_BT, bytes_BT (int32) and weight_BT (float32, 1 at questions), of
    T = (2 + times) * pairs.
  """
  def shuffled(count):
    return np.argsort(draw.random((rows, count)), axis=1)

  key_BN = shuffled(keys)[:, :pairs]
  value_BN = keys + draw.integers(keys, size=(rows, pairs))
  asked_BN = np.concatenate([shuffled(pairs) for _ in range(times)], axis=1)
  pairs_BT = np.stack([key_BN, value_BN], axis=2).reshape(rows, -1)
  questions_BT, answers_BT = (np.take_along_axis(x_BN, asked_BN, axis=1) for x_BN in (key_BN, value_BN))
  tokens_BT = np.concatenate([pairs_BT, questions_BT], axis=1).astype(np.int32)
  targets_BT = np.concatenate([np.zeros_like(pairs_BT), answers_BT], axis=1).astype(np.int32)
  counts_BT = np.zeros_like(tokens_BT)
  counts_BT[:, 2 * pairs:] = 1
  pos_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
  return {"tokens_BT": tokens_BT, "targets_BT": targets_BT, "weight_BT": counts_BT.astype(np.float32),
          "pos_BT": pos_BT, "bytes_BT": counts_BT}
