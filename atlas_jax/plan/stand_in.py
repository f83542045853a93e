"""Data and samplers made up for a plan: of the sizes that a config allows at most, and of no meaning.

A plan needs the shapes of a batch, not its contents. Corpora, tokenizers, recorded answers and completions
are therefore not asked for: they are made up, and the plan says which.
"""
import itertools
import json
import pathlib

import numpy as np

from atlas_jax import config as configs
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language.decoding.sampler import Completion, Rollout, assemble

TEXT = ("memory_lm", "episodic")  # Recipes that read a corpus.
SAMPLED = ("grpo", "gkd", "teacher")  # Recipes whose batches a model writes.
TEXT_BYTES = 8_000_000
GROUPS, RESPONSES = 16, 4  # Of ranked responses.


def completed(config, folder: str) -> tuple:
  """Returns a config whose data can be read, and in words what of it is made up.

  Args:
    config: resolved.
    folder: for files; they are read while the recipe is built, and its first batch made.
  """
  changed = configs.unfrozen(config)
  made_up = []
  if config.recipe in TEXT and config.data.source == "text":
    _text(changed, pathlib.Path(folder))
    made_up.append(f"the text (Python's library), and a tokenizer of {config.model.vocab_size} tokens")
  elif config.recipe == "ranked" and not _is_there(config.data.files):
    made_up += _ranked(changed, pathlib.Path(folder))
  elif config.recipe in SAMPLED:
    changed.sampler.kind = f"{__name__}"
    changed.rollout.zero_std_groups = "keep"  # All of them earn the same.
    made_up.append(f"completions of config.sampler.max_tokens={config.sampler.max_tokens} ids")
  return configs.resolve(changed), tuple(made_up)


def _is_there(path: str | None) -> bool:
  return path is not None and pathlib.Path(path).exists()


def _text(config, folder: pathlib.Path) -> None:
  # Every Python has it, and it has the names and numbers that episodes ask for.
  config.data.update(name="python_stdlib", path=None, download=False, limit_bytes=TEXT_BYTES)
  config.data.held_out_frac = max(config.data.held_out_frac, 0.1)
  if config.data.tokenizer != "byte":
    write_tokenizer(folder / "tokenizer.json", config.model.vocab_size)
    config.data.tokenizer = str(folder / "tokenizer.json")


def _ranked(config, folder: pathlib.Path) -> list[str]:
  # Longer than a row, and cut: every row is then full.
  rest = " a" * config.data.segment_len
  group = [{"text": f"{number}{rest}", "score": float(number)} for number in range(RESPONSES)]
  file = folder / "groups.json"
  file.write_text(json.dumps([{"prompt": f"{number}?", "responses": group} for number in range(GROUPS)]))
  config.data.update(files=str(file), overlong="truncate", held_out_frac=0.25)
  config.ranked.eval_files = None
  made_up = [f"groups of {RESPONSES} responses that fill config.data.segment_len={config.data.segment_len}"]
  if not _is_there(config.data.tokenizer):
    config.data.tokenizer = "byte"
    made_up.append("a tokenizer of bytes")
  return made_up


def write_tokenizer(file: pathlib.Path, vocab_size: int) -> None:
  """Writes a byte-level BPE with so many tokens, the separator that reading it appends included.

  Its merges join any two tokens, in the order of the alphabet.

  Raises:
    ValueError: for less than 257 tokens: every byte, and the separator.
  """
  smallest = tokenizers.ByteTokenizer.vocab_size
  if vocab_size < smallest:
    raise ValueError(f"config.model.vocab_size={vocab_size} must be at least {smallest}")
  letters = _letters()
  merges = list(itertools.islice(itertools.product(letters, letters), vocab_size - smallest))
  if len(merges) < vocab_size - smallest:  # All pairs are used up; longer tokens follow.
    longer = itertools.product([f"{one}{other}" for one, other in merges], letters)
    merges += itertools.islice(longer, vocab_size - smallest - len(merges))
  tokens = [*letters, *(f"{one}{other}" for one, other in merges)]
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
  model = {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)},
           "merges": [list(pair) for pair in merges]}
  file.write_text(json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level,
                              "model": model}))


def _letters() -> list[str]:
  """Lists the characters that stand for the 256 bytes in byte-level BPE: printable ones for themselves."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  stands = {byte: chr(byte) for byte in printable}
  stands.update({byte: chr(256 + place) for place, byte in enumerate(others)})
  return [stands[byte] for byte in range(256)]


class LongestSampler:
  """A sampler without a model whose completions are as long as they may be.

  Attributes:
    version: of the weights loaded last; None before the first.
  """

  def __init__(self, token: int):
    """Takes the id that stands everywhere."""
    self._token = token
    self.version: int | None = None

  def load(self, params, version: int) -> None:
    """Takes weights, and does without; see `Sampler.load`."""
    self.version = version

  def generate(self, prompts, options, seed: int) -> Rollout:
    """Writes completions of options.max_tokens ids; see `Sampler.generate`."""
    ids = [self._token] * options.max_tokens
    zeros = [0.0] * options.max_tokens
    one = Completion(ids, zeros, zeros, "length", "", self.version or 0)
    return assemble([one] * (len(prompts) * options.n), pad_id=self._token)


def zero_logprobs(params, frozen, rows) -> np.ndarray:
  """Returns a trainer's log-probabilities of recorded rows, [B, T], all zero; see `RolloutSource`."""
  del params, frozen
  return np.zeros(rows["completion_BT"].shape, np.float32)


def make(config, start, mesh, workdir=None) -> LongestSampler:
  """Makes the sampler of a plan; see `language.samplers`."""
  del config, mesh, workdir
  return LongestSampler(int(start.tokenizer.encode("a")[0]))
