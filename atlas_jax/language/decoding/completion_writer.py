"""One completion on the host: its ids and text so far, and what ends it."""
import numpy as np

from atlas_jax.language.decoding import drawing
from atlas_jax.language.decoding.drawing import DrawnIds
from atlas_jax.language.decoding.requests import CompletionRequest, TokenEvent
from atlas_jax.language.decoding.stream_text import StopText


class CompletionWriter:
  """Takes the ids of a completion as they are drawn.

  Attributes:
    tokens: so far.
    reason, stop: as of `requests.EndEvent`; None until the completion has ended.
  """

  def __init__(self, request: CompletionRequest, index: int, tokenizer, tokens=()):
    """Starts a completion; `tokens` are those it has already, none of which ended it."""
    self._options = request.sampling
    self._allowed = request.allowed
    self._top = request.top_logprobs
    self._text = StopText(tokenizer, request.sampling.stop_strings)
    self._bias_V: np.ndarray | None = None
    self.request = request
    self.index = index
    self.tokens = list(tokens)
    self.reason: str | None = None
    self.stop: str | int | None = None
    for token in self.tokens:
      self._text.push(token)

  def push(self, drawn: DrawnIds, row: int) -> TokenEvent:
    """Takes the id drawn in a row and returns its event; `reason` says whether it was the last.

    Args:
      drawn: of all rows, on the host.
      row: the completion's.

    Raises:
      FloatingPointError: if its scores are no numbers.
    """
    if not drawn.finite_B[row]:
      raise FloatingPointError(f"the model's scores for id {len(self.tokens)} of the completion are not "
                               "finite; its weights or state are damaged")
    token = int(drawn.token_B[row])
    self.tokens.append(token)
    text = ""
    if token in self._options.stop_tokens:
      self.reason = "stop_token"
      self.stop = token
    else:
      text = self._text.push(token)
      if self._text.stopped is not None:
        self.reason = "stop_string"
        self.stop = self._text.stopped
      elif len(self.tokens) >= self._options.max_tokens:
        self.reason = "length"
    top: tuple[tuple[int, float], ...] = ()
    if self._top:
      top = tuple(zip(drawn.top_BE[row, :self._top].tolist(), drawn.top_logprob_BE[row, :self._top].tolist(),
                      strict=True))
    return TokenEvent(self.index, token, text, float(drawn.logprob_B[row]),
                      float(drawn.sampler_logprob_B[row]), float(drawn.full_logprob_B[row]), top)

  def flush(self) -> str:
    """Returns the text that was held back, at the end."""
    return self._text.flush()

  def bias(self, vocab_size: int) -> np.ndarray | None:
    """Returns the bias of the next id's scores where that changes from id to id, else None.

    Raises:
      ValueError: if the request's `allowed` allows nothing; whatever else it raises.
    """
    if self._allowed is None:
      return None
    if self._bias_V is None:
      self._bias_V = drawing.start(self.request, self.request.first + self.index, vocab_size).bias_BV[0]
    return drawing.with_allowed(self._bias_V, self._allowed(tuple(self.tokens)))
