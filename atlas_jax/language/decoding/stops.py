"""The end of completions: the first id behind which a stop string stands, without decoding twice."""
from collections.abc import Sequence

import numpy as np

from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.language.decoding.sampler import SamplingOptions


class StringStops:
  """Looks for stop strings in completions that grow by a few ids at a time.

  Texts are compared as UTF-8 bytes, whose characters cannot be mistaken for parts of others.
  """

  def __init__(self, tokenizer: Tokenizer, strings: Sequence[str], rows: int):
    """Starts with empty completions."""
    self._tokenizer = tokenizer
    self._strings = [string.encode() for string in strings]
    # A string may have begun in the ids before: all of it but one byte is kept.
    self._keep = max(map(len, self._strings)) - 1
    self._tails = [b""] * rows

  def push(self, tokens_TB: np.ndarray, done_B: np.ndarray) -> np.ndarray:
    """Returns which rows are done now.

    Args:
      tokens_TB: the ids that come next in each row.
      done_B: bool, rows that were done before, or are with these ids for another reason.

    Returns:
      done_B, with the rows whose text now has a stop string.
    """
    done_B = done_B.copy()
    for row in range(len(self._tails)):
      if not done_B[row]:
        text = self._tails[row] + self._tokenizer.decode_bytes(known(tokens_TB[:, row], self._tokenizer))
        self._tails[row] = text[max(0, len(text) - self._keep):]
        done_B[row] = any(string in text for string in self._strings)
    return done_B


def known(tokens, tokenizer: Tokenizer) -> np.ndarray:
  """Returns the ids that the tokenizer knows.

  A model's vocabulary may be larger, and the rest has no text.
  """
  tokens = np.asarray(tokens)
  return tokens[tokens < tokenizer.vocab_size]


def cut(tokens, strings: Sequence[str], tokenizer: Tokenizer) -> tuple[int, str] | None:
  """Cuts a completion behind the first id that completes a stop string.

  Args:
    tokens: its ids.
    strings: stop strings, none of them empty.
    tokenizer: decodes them.

  Returns:
    (ids to keep, text before the stop string), or None if there is none.
  """
  tokens = np.asarray(tokens)
  text = tokenizer.decode_bytes(known(tokens, tokenizer))
  # Of each string the first place; UTF-8 lets no string be found from the middle of a character.
  found = [(text.find(string.encode()), len(string.encode())) for string in strings]
  ends = [start + size for start, size in found if start >= 0]
  if not ends:
    return None
  # Ids that the tokenizer does not know stand for no bytes; index 0 is only looked up in their place.
  is_known = tokens < tokenizer.vocab_size
  sizes = np.where(is_known, tokenizer.byte_lengths()[np.where(is_known, tokens, 0)], 0)
  reach = np.cumsum(sizes)
  # The first id with whose bytes the text reaches the end of a stop string.
  at = int(np.searchsorted(reach, min(ends)))
  # The same id may complete several strings; the text ends before the one that begins first.
  starts = [start for start, size in found if 0 <= start and start + size <= reach[at]]
  return at + 1, text[:min(starts)].decode("utf-8", errors="replace")


def ending(tokens: Sequence[int], options: SamplingOptions, tokenizer: Tokenizer) -> tuple[int, str | None,
                                                                                          str]:
  """Finds where a completion ends that another program wrote, by the rules of our own samplers.

  Args:
    tokens: its ids.
    options: with stop_tokens, stop_strings and max_tokens.
    tokenizer: decodes them.

  Returns:
    (ids to keep, reason or None if nothing ends it, text without what stopped it).
  """
  size = next((at + 1 for at, token in enumerate(tokens) if token in options.stop_tokens), None)
  shown = tokens if size is None else tokens[:size - 1]
  found = cut(shown, options.stop_strings, tokenizer)
  if found is not None:
    return found[0], "stop_string", found[1]
  text = tokenizer.decode(known(shown, tokenizer))
  if size is not None:
    return size, "stop_token", text
  return len(tokens), "length" if len(tokens) == options.max_tokens else None, text
