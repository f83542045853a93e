"""Real text to hide things in: stretches of a corpus, as views of its tokens."""
import functools
import itertools
from collections.abc import Callable

import numpy as np

from atlas_jax.data import corpus as corpora
from atlas_jax.data import problems
from atlas_jax.data import store as stores

TRIES = 100  # Documents drawn before all are looked at.


class Haystack:
  """Documents one after another, from any place on, and again from the first when all are used."""

  def __init__(self, ids, starts, lengths, *, sha256: str = ""):
    """Takes documents as token ids: document d is ids[starts[d] : starts[d] + lengths[d]].

    Args:
      ids, starts, lengths: the documents.
      sha256: digest of the corpus that they are of, by which a place in a source is checked.
    """
    self.sha256 = sha256
    self._ids = ids
    self._starts = starts
    self._lengths = lengths

  def take(self, draw: np.random.Generator, count: int) -> list[np.ndarray]:
    """Draws a stretch of text.

    Args:
      draw: chooses where it begins and in which order documents follow.
      count: how many tokens.

    Returns:
      Views of the documents' ids, together that long; nothing is copied.
    """
    order = draw.permutation(len(self._lengths))
    skipped = int(draw.integers(self._lengths[order[0]]))
    found: list[np.ndarray] = []
    for document in itertools.cycle(order):
      if not count:
        break
      first = self._starts[document] + skipped
      found.append(self._ids[first:first + min(count, self._lengths[document] - skipped)])
      count -= len(found[-1])
      skipped = 0
    return found

  def stretch(self, draw: np.random.Generator, count: int) -> np.ndarray:
    """Draws a stretch of one document, any that is long enough as likely as another.

    Args:
      draw: chooses the document and where it begins.
      count: how many tokens.

    Returns:
      A view of the document's ids.

    Raises:
      ValueError: if no document is so long.
    """
    for _ in range(TRIES):
      document = int(draw.integers(len(self._lengths)))
      if self._lengths[document] >= count:
        break
    else:
      # Looked for among all only where long documents are rare: there may be tens of millions.
      long = np.flatnonzero(self._lengths >= count)
      if not len(long):
        raise ValueError(f"no document has {count} tokens, a stretch of text to hide things in; take a "
                         "corpus with longer ones (config.data.name, config.data.path)")
      document = int(long[draw.integers(len(long))])
    first = self._starts[document] + int(draw.integers(self._lengths[document] - count + 1))
    return self._ids[first:first + count]


def of_corpus(*, name: str, path, text_field: str, limit_bytes: int | None, download: bool,
              cache_dir: str | None, bad_input_frac: float, held_out_frac: float, tokenizer,
              split: str) -> Callable[[], Haystack]:
  """Returns a function that reads the documents of a split when it is first called; see `data.text.make`.

  Where nothing is held out, every split has all documents.
  """
  @functools.cache
  def read() -> Haystack:
    corpus = corpora.load(name, path=path, text_field=text_field, limit_bytes=limit_bytes, download=download)
    store = stores.load(corpus, tokenizer, cache_dir=cache_dir, bad_input_frac=bad_input_frac)
    below = problems.threshold(store.split, held_out_frac, f"document of config.data.name={name!r}")
    chosen = np.flatnonzero((store.split < below) == (split != "train")) if held_out_frac else ...
    lengths = store.lengths[chosen]
    return Haystack(store.ids, store.starts[chosen][lengths > 0], lengths[lengths > 0],
                    sha256=store.manifest["sha256"])

  return read


# What `of_corpus` is made of, as fields of config.data.
FIELDS = ("name", "path", "text_field", "limit_bytes", "download", "cache_dir", "bad_input_frac",
          "held_out_frac")
