"""Memory caching: the loop of any rule, run again up to each segment's end, and read where it was then."""

import functools
import importlib

import numpy as np

from tests.memory.oracles import Run, arrays


def run(
  learned,
  tokens,
  gates,
  *,
  chunk_size,
  write_T=None,
  reset_T=None,
  momentum=None,
  rule="titans",
  options=None,
  segment=None,
  segments=8,
  read="gate",
  choose=2,
  restart=False,
  when_full="oldest",
):
  slow = arrays(learned["slow"])
  inner = importlib.import_module(f"tests.memory.oracles.{rule}").run
  inner = functools.partial(inner, chunk_size=chunk_size, **(options or {}))
  late = chunk_size if (rule, (options or {}).get("mode", "chunk_end")) == ("atlas", "chunk_end") else None
  started = {"fast": arrays(learned["fast"]), "slow": slow.get("rule", {})}
  tokens = [arrays(x) for x in tokens]
  length = len(tokens[0])
  write_T = np.ones(length) if write_T is None else np.asarray(write_T, float)
  starts = [0] + [t for t in range(1, length) if reset_T is not None and reset_T[t]]
  outs, end = [], None
  for at, begin in enumerate(starts):
    stop = [*starts, length][at + 1]
    if begin == 0 and reset_T is not None and reset_T[0]:
      momentum = None
    document = Document(inner, started, tokens, gates, write_T, begin, stop, momentum if begin == 0 else None)
    size = (segment or chunk_size) // chunk_size
    out_TM, end = document.read(slow, size, chunk_size, segments, read, choose, restart, when_full, late)
    outs.append(out_TM)
  return Run(np.concatenate(outs), end.fast, end.momentum)


class Document:
  """One document's tokens, and the loop of the rule over any part of them."""

  def __init__(self, inner, started, tokens, gates, write_T, begin, stop, momentum):
    cut = lambda x: np.asarray(x)[begin:stop]
    self.inner, self.started, self.momentum = inner, started, momentum
    self.q_TK, self.k_TK, self.v_TM = (cut(x) for x in tokens)
    self.gates, self.write_T = {name: cut(x) for name, x in gates.items()}, cut(write_T)

  def run(self, start, stop, *, learned=None, write_T=None, momentum=None):
    part = lambda x: x[start:stop]
    write_T = self.write_T if write_T is None else write_T
    more = {} if momentum is None else {"momentum": momentum}
    return self.inner(
      learned or self.started,
      tuple(part(x) for x in (self.q_TK, self.k_TK, self.v_TM)),
      {name: part(x) for name, x in self.gates.items()},
      write_T=part(write_T),
      **more,
    )

  def ends(self, segment_chunks, chunk_size):
    """Tokens after which a segment ends: so many full chunks with a token that is written."""
    found, chunks = [], 0
    for end in range(chunk_size, len(self.q_TK) + 1, chunk_size):
      chunks += int(self.write_T[end - chunk_size : end].any())
      if chunks == segment_chunks:
        found, chunks = [*found, end], 0
    return found

  def recall(self, fast, t):
    """What a memory that stands still recalls for the query of token t."""
    frozen = {"fast": fast, "slow": self.started["slow"]}
    return self.run(t, t + 1, learned=frozen, write_T=np.zeros_like(self.write_T)).out_TM[0]

  def read(self, slow, segment_chunks, chunk_size, segments, read, choose, restart, when_full, late):
    length, ends = len(self.q_TK), self.ends(segment_chunks, chunk_size)
    cached, outs, begin = [], [], 0
    for end in sorted({*ends, length}):
      first = begin if restart else 0
      run = self.run(first, end, momentum=self.momentum if first == 0 else None)
      for t in range(begin, end):
        seen = t // late * late if late else t + 1  # Nor does a rule that reads its chunk's start see more.
        mine = self.write_T[begin:seen] == 1
        means = [mean for _, mean in cached] + [mean_of(self.k_TK[begin:seen][mine])]
        weights = weigh(slow, self.q_TK[t], means, read, choose)
        reads = [self.recall(fast, t) for fast, _ in cached] + [run.out_TM[t - first]]
        outs.append(sum(w * x for w, x in zip(weights, reads)))
      if end in ends:
        mean = mean_of(self.k_TK[begin:end][self.write_T[begin:end] == 1])
        if when_full == "oldest":
          cached = [*cached, (run.fast, mean)][-segments:]
        elif len(cached) < segments:
          cached = [*cached, (run.fast, mean)]
        if restart:
          run = Run(None, self.started["fast"], {name: 0 * s for name, s in run.momentum.items()})
      begin = end
    return np.array(outs), run


def mean_of(keys):
  return keys.mean(axis=0) if len(keys) else np.zeros(keys.shape[1])


def weigh(slow, q, means, read, choose):
  """Weights of the checkpoints, and of the memory itself, which comes last."""
  if read == "residual":
    return np.ones(len(means))
  products = np.array([q @ slow["router"] @ mean for mean in means])
  if read == "sparse":
    best = set(np.argsort(-products[:-1])[:choose]) | {len(means) - 1}
    products = np.where([i in best for i in range(len(means))], products, -np.inf)
  weights = np.exp(products - products.max())
  return weights / weights.sum()
