"""Samplers write completions: what they are asked, what they give, and one that writes from a script."""
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from atlas_jax.data.problems import StableRandom
from atlas_jax.data.tokenizer import Tokenizer

REASONS = ("stop_token", "stop_string", "length", "abort")


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
  """Settings of sampling. "Off" is None.

  Raises:
    ValueError: for a value that cannot be, naming it.
  """

  max_tokens: int = 256                 # ids of a completion, the one that stops it included
  n: int = 1                            # completions per prompt
  temperature: float = 1.0              # 0 takes the likeliest id
  top_k: int | None = None              # ids that may be drawn
  top_p: float | None = None            # probability mass that is kept, at least
  min_p: float | None = None            # least probability, as a fraction of the largest
  repetition_penalty: float = 1.0       # divides positive logits of ids that stand there, multiplies negative
  stop_tokens: tuple[int, ...] = ()     # a completion ends behind any of these
  stop_strings: tuple[str, ...] = ()    # and behind the id that completes any of these

  def __post_init__(self):
    object.__setattr__(self, "stop_tokens", tuple(int(token) for token in self.stop_tokens))
    object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
    bounds = {
        "max_tokens": (self.max_tokens >= 1, "at least 1"), "n": (self.n >= 1, "at least 1"),
        "temperature": (0 <= self.temperature < math.inf, "0 or more"),
        "top_k": (self.top_k is None or self.top_k >= 1, "at least 1, or None"),
        "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or None"),
        "min_p": (self.min_p is None or 0 <= self.min_p < 1, "at least 0 and below 1, or None"),
        "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 is off"),
        "stop_strings": (all(self.stop_strings), "texts that are not empty")}
    for name, (fits, what) in bounds.items():
      if not fits:
        raise ValueError(f"config.sampler.{name}={getattr(self, name)!r} must be {what}")

  @property
  def filters(self) -> bool:
    """Returns whether some ids may not be drawn, because of top_k, top_p or min_p."""
    return self.top_k is not None or self.top_p not in (None, 1) or bool(self.min_p)

  @property
  def draws_from_all(self) -> bool:
    """Returns whether any id may be drawn, so that both log-probabilities of a rollout are the same."""
    return not self.filters and self.repetition_penalty == 1


def check_prompt(prompt, vocab_size: int, *, name: str) -> np.ndarray:
  """Returns the ids of a prompt, int32.

  Raises:
    ValueError: if there is none, or one is no id of the model; `name` says which prompt it is.
  """
  row = np.asarray(prompt)
  if row.ndim != 1 or not row.size:
    raise ValueError(f"{name} has no ids; give at least one, such as the id that opens a document")
  if not np.issubdtype(row.dtype, np.integer) or row.min() < 0 or row.max() >= vocab_size:
    raise ValueError(f"{name} has ids from {row.min()} to {row.max()}; they must be integers in "
                     f"0..{vocab_size - 1}, the model's vocabulary; use the model's own tokenizer")
  return row.astype(np.int32)


class Completion(NamedTuple):
  """One completion."""

  tokens: Sequence[int]            # the ids that were drawn, the one that stopped it included
  sampler_logprobs: Sequence[float]  # of each, in the distribution it was drawn from
  full_logprobs: Sequence[float]   # of each, in the tempered distribution over all ids
  reason: str                      # one of REASONS
  text: str                        # without what stopped it, and without special tokens
  version: int                     # of the weights that wrote it


class Rollout(NamedTuple):
  """Completions of prompts: B = prompts * n rows, those of a prompt adjacent, padded on the right.

  Ids are told from padding by length_B alone: a drawn id may equal the one that pads.
  """

  tokens_BT: np.ndarray            # int32
  length_B: np.ndarray             # int32, 0 or more
  sampler_logprob_BT: np.ndarray   # float32, of each id in the distribution it was drawn from; 0 at padding
  full_logprob_BT: np.ndarray      # float32, in the tempered distribution over all ids; 0 at padding
  reason_B: tuple[str, ...]        # why each row stopped, of REASONS
  version_B: np.ndarray            # int32, version of the weights that wrote each row
  text_B: tuple[str, ...]          # without what stopped it, and without special tokens


class Sampler(Protocol):
  """The interface of what writes completions."""

  def load(self, params: Any, version: int) -> None:
    """Takes the weights that the next `generate` writes with, and a number that grows with every update."""

  def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions, seed: int) -> Rollout:
    """Writes n completions of each prompt; the same seed, prompts and weights give the same.

    Args:
      prompts: ids of each.
      options: how.
      seed: draws; row j of a prompt depends on the seed, its place among the prompts and j alone.
    """


def assemble(completions: Sequence[Completion], *, pad_id: int, width: int | None = None) -> Rollout:
  """Puts completions into arrays.

  Args:
    completions: B of them, those of a prompt adjacent.
    pad_id: what stands behind the end of a row.
    width: T; None is the longest completion, at least 1.

  Raises:
    ValueError: if a completion is longer than `width`, or has not one log-probability per id.
  """
  longest = max([1, *(len(one.tokens) for one in completions)])
  width = longest if width is None else width
  if longest > width:
    raise ValueError(f"a completion has {longest} ids, more than the width={width} of the rollout")
  tokens_BT = np.full((len(completions), width), pad_id, np.int32)
  sampler_logprob_BT, full_logprob_BT = np.zeros((2, *tokens_BT.shape), np.float32)
  for row, one in enumerate(completions):
    size = len(one.tokens)
    if len(one.sampler_logprobs) != size or len(one.full_logprobs) != size:
      raise ValueError(f"completion {row} has {size} ids, but {len(one.sampler_logprobs)} and "
                       f"{len(one.full_logprobs)} log-probabilities")
    tokens_BT[row, :size] = one.tokens
    sampler_logprob_BT[row, :size], full_logprob_BT[row, :size] = one.sampler_logprobs, one.full_logprobs
  return Rollout(
      tokens_BT, np.array([len(one.tokens) for one in completions], np.int32), sampler_logprob_BT,
      full_logprob_BT, tuple(one.reason for one in completions),
      np.array([one.version for one in completions], np.int32), tuple(one.text for one in completions))


def completion_mask(rollout: Rollout) -> np.ndarray:
  """Returns completion_mask_BT, bool: which places hold ids that were drawn."""
  return np.arange(rollout.tokens_BT.shape[1])[None, :] < rollout.length_B[:, None]


def check(rollout: Rollout, prompts: Sequence[Sequence[int]], options: SamplingOptions, *,
          version: int | None = None, max_staleness: int = 0) -> None:
  """Refuses a rollout that does not hold what was asked for.

  Args:
    rollout: what a sampler gave.
    prompts, options: what it was asked.
    version: of the weights that training has now; None does not look.
    max_staleness: how many versions older the weights that wrote a row may be.

  Raises:
    ValueError: naming the first row at fault and what is wrong with it.
  """
  rows, width = rollout.tokens_BT.shape
  wanted = len(prompts) * options.n
  if rows != wanted or not rows == len(rollout.reason_B) == len(rollout.text_B) == len(rollout.version_B):
    raise ValueError(f"the sampler gave {rows} completions for {len(prompts)} prompts of {options.n} each; "
                     f"it must give {wanted}, each with its reason, version and text")
  mask_BT = completion_mask(rollout)
  for row in range(rows):
    length = int(rollout.length_B[row])
    reason = rollout.reason_B[row]
    about = f"completion {row % options.n} of prompt {row // options.n}"
    for name in ("sampler_logprob_BT", "full_logprob_BT"):
      logprobs = getattr(rollout, name)[row][mask_BT[row]]
      # Rounding may put the log-probability of a sure id a little above 0.
      if not np.isfinite(logprobs).all() or (logprobs > 1e-3).any():
        raise ValueError(f"{about}: its {name} has values that are no log-probabilities: {logprobs}")
    if not 0 <= length <= min(width, options.max_tokens):
      raise ValueError(f"{about}: has {length} ids, more than max_tokens={options.max_tokens} or its row")
    if reason not in REASONS:
      raise ValueError(f"{about}: stopped for {reason!r}, which is none of {', '.join(REASONS)}")
    last = int(rollout.tokens_BT[row, length - 1]) if length else None
    if reason == "stop_token" and last not in options.stop_tokens:
      raise ValueError(f"{about}: stopped at a token that is none of stop_tokens={options.stop_tokens}")
    age = 0 if version is None else version - int(rollout.version_B[row])
    if not 0 <= age <= max_staleness:
      raise ValueError(f"{about}: was written by weights of version {int(rollout.version_B[row])}, training "
                       f"has {version}; max_staleness={max_staleness} allows no such age; load them again")


def stop_at(tokens: Sequence[int], options: SamplingOptions, tokenizer: Tokenizer) -> tuple[int, str,
                                                                                            str] | None:
  """Finds where the ids drawn so far must stop.

  Args:
    tokens: ids of a completion.
    options: with stop_tokens, stop_strings and max_tokens.
    tokenizer: decodes them.

  Returns:
    (ids to keep, reason, text without what stopped it), or None if it may go on.
  """
  # Decodes anew at every id, in quadratic time: a script's texts are short. `stops` reads each id once.
  for at, token in enumerate(tokens[:options.max_tokens]):
    if int(token) in options.stop_tokens:
      return at + 1, "stop_token", tokenizer.decode(tokens[:at])
    if options.stop_strings:
      text = tokenizer.decode(tokens[:at + 1])
      ends = [text.find(string) for string in options.stop_strings if string in text]
      if ends:
        return at + 1, "stop_string", text[:min(ends)]
  if len(tokens) >= options.max_tokens:
    return options.max_tokens, "length", tokenizer.decode(tokens[:options.max_tokens])
  return None


class ScriptedSampler:
  """A sampler without a model: it draws each completion from those that a script offers for the prompt.

  All that a script offers is equally likely, and the log-probability of the choice stands on the first id.
  Behind its text stands the first of the stop tokens.

  Attributes:
    version: of the weights loaded last; None before the first.
    params: those weights, not used but by the script.
    calls: how often `generate` was called.
  """

  def __init__(self, tokenizer: Tokenizer, script: Mapping[str, Sequence[str]] | Callable):
    """Takes a script.

    Args:
      tokenizer: decodes prompts and encodes completions.
      script: prompt text -> texts to choose from, as a mapping or as a function of (text, params).
    """
    self._tokenizer = tokenizer
    self._script = script
    self.params: Any = None
    self.version: int | None = None
    self.calls = 0

  def load(self, params: Any, version: int) -> None:
    """Takes weights; see `Sampler.load`."""
    self.params = params
    self.version = version

  def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions, seed: int) -> Rollout:
    """Writes completions; see `Sampler.generate`.

    Raises:
      ValueError: before the first `load`, without a stop token, or for a prompt that is not in the script.
    """
    if self.version is None:
      raise ValueError("the sampler has no weights yet; call load(params, version) first")
    if not options.stop_tokens:
      raise ValueError("options.stop_tokens is empty; a script needs one to end its texts with")
    self.calls += 1
    written = [self._write(prompt, options, StableRandom(seed, place, number))
               for place, prompt in enumerate(prompts) for number in range(options.n)]
    return assemble(written, pad_id=self._tokenizer.doc_id)

  def _write(self, prompt: Sequence[int], options: SamplingOptions, draws: StableRandom) -> Completion:
    text = self._tokenizer.decode(prompt)
    offered = self._script(text, self.params) if callable(self._script) else self._script.get(text)
    if not offered:
      raise ValueError(f"the script offers nothing for the prompt {text!r}; add it")
    offered = [offered[0]] if not options.temperature else list(offered)
    chosen = offered[draws.below(len(offered))]
    tokens = [*self._tokenizer.encode(chosen).tolist(), options.stop_tokens[0]]
    stopped = stop_at(tokens, options, self._tokenizer)
    assert stopped is not None  # The last id stops it, if nothing else does.
    size, reason, text = stopped
    # The choice is made at the first id; those that follow it are certain.
    logprobs = [-math.log(len(offered)), *[0.0] * (size - 1)]
    return Completion(tokens[:size], logprobs, logprobs, reason, text, int(self.version or 0))
