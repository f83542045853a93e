"""The text of a completion while it is written, held back where it may be the start of a stop string."""
import codecs
from collections.abc import Sequence

from atlas_jax.data.tokenizer import Tokenizer


class StopText:
  """Turns ids into text up to the first stop string, which may stand across ids; see `stops.cut`.

  Texts are compared as UTF-8 bytes. No piece ends inside a character, and none has a byte of a stop string
  or of what may still become one.

  Attributes:
    stopped: the stop string that was found; None before. Of several the one that begins first.
  """

  def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
    """Starts with an empty text."""
    self._tokenizer = tokenizer
    self._strings = [(string.encode(), string) for string in strings]
    self._held = b""
    self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    self.stopped: str | None = None

  def push(self, token: int) -> str:
    """Returns the text that is certain with one id more; ids that the tokenizer has not stand for none."""
    assert self.stopped is None
    known = token < self._tokenizer.vocab_size
    data = self._held + (self._tokenizer.decode_bytes([token]) if known else b"")
    # Longer strings first: of two that begin together the text is the same, and the longer one is named.
    found = sorted((at, -len(string), name) for string, name in self._strings
                   if (at := data.find(string)) >= 0)
    if found:
      self.stopped = found[0][2]
      self._held = b""
      return self._decoder.decode(data[:found[0][0]])
    keep = max((_overlap(data, string) for string, _ in self._strings), default=0)
    self._held = data[len(data) - keep:]
    return self._decoder.decode(data[:len(data) - keep])

  def flush(self) -> str:
    """Returns the rest at the end: what was held back, and a replacement for half a character."""
    return self._decoder.decode(self._held, final=True)


def _overlap(data: bytes, string: bytes) -> int:
  """Returns how many bytes at the end of data are the start of a string, less than all of it."""
  for size in range(min(len(string) - 1, len(data)), 0, -1):
    if data.endswith(string[:size]):
      return size
  return 0
