"""Transforms of documents for which it is known whether a memory should help to predict the result.

"repeat": each document twice; all of the second copy was read before. "shuffle_lines": its lines in another
order; what recurs in lines stays, what leads from line to line is lost. "permute_bytes": the 128 bytes of
ASCII are exchanged, differently in every document: what was learnt of letters helps no more, and only the
document itself tells which is which. "random_bytes": as many bytes as the document has, uniform and
independent: they cost 8 bits each, and neither memory nor learning can save any.
"""
import numpy as np

from atlas_jax.data.corpus import Corpus
from atlas_jax.data.formats import Document

ASCII = 128


def transformed(corpus: Corpus, transform: str | None, seed: int, *, tokenizer: str = "byte") -> Corpus:
  """Yields the corpus of the transformed documents; their names, order and split stay.

  Args:
    corpus: of the documents as they are.
    transform: a name of `TRANSFORMS`; None: as they are.
    seed: draws what is random of a document, together with its number in the corpus.
    tokenizer: the fingerprint of the tokenizer that is to read them.

  Raises:
    ValueError: if there is no such transform, or the tokenizer cannot read what it gives.
  """
  if transform is None:
    return corpus
  if transform not in TRANSFORMS:
    raise ValueError(f"config.data.transform={transform!r} is unknown; known are {', '.join(TRANSFORMS)}")
  if transform == "random_bytes" and tokenizer != "byte":
    raise ValueError("the transform 'random_bytes' is no text that a tokenizer of characters could read; set "
                     "config.data.tokenizer='byte', or take another transform")
  change = TRANSFORMS[transform]
  # Part of the identity: a transformed corpus has a cache of its own, and a run is not resumed on the other.
  # A repeated text depends on no seed, so all seeds share one cache.
  known = {"transform": transform, "transform_seed": None if transform == "repeat" else seed}

  def documents(faults):
    for number, document in enumerate(corpus.documents(faults)):
      yield Document(document.name, change(document.text, DocumentRandom(seed, number)))

  # The other transforms keep the number of bytes; `store.load` decides by the size whether to use a cache.
  twice = 2 if transform == "repeat" else 1
  size = None if corpus.size_bytes is None else twice * corpus.size_bytes
  return corpus._replace(manifest={**corpus.manifest, **known}, identity=[*corpus.identity, known],
                         size_bytes=size, documents=documents)


class DocumentRandom:
  """Random numbers of one document, the same under every NumPy."""

  def __init__(self, seed: int, number: int):
    """Takes the seed of the run and the number of the document."""
    self._bits = np.random.PCG64(np.random.SeedSequence([seed, number]))

  def order(self, count: int):
    """Draws an order of so many things."""
    return np.argsort(self._bits.random_raw(count), kind="stable")

  def bytes(self, count: int) -> bytes:
    """Draws so many bytes, uniform and independent."""
    # Eight bytes a draw, little-endian on every machine: the text is the same everywhere.
    return self._bits.random_raw(-(-count // 8)).astype("<u8").tobytes()[:count]


def repeat(text: bytes, draws: DocumentRandom) -> bytes:
  """Returns the text twice."""
  del draws
  return text + text


def shuffle_lines(text: bytes, draws: DocumentRandom) -> bytes:
  """Returns the lines in another order; a line break at the end stays there."""
  # Without this the empty piece behind the last line break would be shuffled in as an empty line.
  end = b"\n" if text.endswith(b"\n") else b""
  lines = text.removesuffix(b"\n").split(b"\n")
  return b"\n".join(lines[at] for at in draws.order(len(lines))) + end


def permute_bytes(text: bytes, draws: DocumentRandom) -> bytes:
  """Returns the text with its ASCII bytes replaced one to one.

  Other bytes stay, so that it is UTF-8 still.
  """
  table = np.arange(256, dtype=np.uint8)
  # Bytes from 128 on are parts of characters in UTF-8: exchanged, they would form none.
  table[:ASCII] = draws.order(ASCII)
  return text.translate(table.tobytes())


def random_bytes(text: bytes, draws: DocumentRandom) -> bytes:
  """Returns as many random bytes; not UTF-8, so that tokenizers of characters cannot read them."""
  return draws.bytes(len(text))


TRANSFORMS = {"repeat": repeat, "shuffle_lines": shuffle_lines, "permute_bytes": permute_bytes,
              "random_bytes": random_bytes}
