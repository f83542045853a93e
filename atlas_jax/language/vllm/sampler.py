"""Completions from vLLM's server, which gets new weights after each update through a folder of safetensors.

Ids go in and out; texts are made here. What the server reports is not believed but looked at: after each
hand-over it scores a fixed prompt, and must come to the log-probabilities of our own model; before the first
completion it must show that it reports those of the tempered distribution that it draws from.

With filters (top_k, top_p, min_p, repetition_penalty) it reports only those of what they leave. Those over
all ids are asked for separately, and exist at temperature 1 alone: filters at another one are refused.
"""
import concurrent.futures
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from atlas_jax.data.problems import StableRandom
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding import stops
from atlas_jax.language.decoding.sampler import Completion, Rollout, SamplingOptions, check_prompt
from atlas_jax.language.vllm import weights
from atlas_jax.language.vllm.client import ServerError
from atlas_jax.language.vllm.engine import MODE, VLLMEngine
from atlas_jax.models.language import LanguageModel
from atlas_jax.parallel import hosts

PROBE_TOKENS = 32  # Of the prompt that is scored after a hand-over.
DRAWN_TOKENS = 8   # Of those, how many are drawn to see what the server reports.
PROBE_TEMPERATURE = 0.5  # At 1 both modes would report the same.
GAP_LIMIT_NATS = {"float32": 1e-3}  # By dtype of the activations; float32 differs by 1e-5, bfloat16 by 0.05.
COARSE_GAP_LIMIT_NATS = 0.1
TEMPERATURES = (0.01, 2.0)  # The server takes lower ones for the lowest, and no higher ones.
SEEDS = 2**62


def make(language: LanguageModel, tokenizer: Tokenizer, *, like, workdir, longest_tokens: int | None, url,
         command, arguments, port, shared_folder, dtype, gap_limit_nats, start_timeout_s, timeout_s, retries,
         backoff_s, parallel_requests) -> "VllmSampler":
  """Makes a sampler from the fields of config.vllm; the server starts with the first weights.

  Args:
    language: the model, one that Hugging Face has a format for.
    tokenizer: decodes completions.
    like: folder of the pretrained model that it was read from, or None.
    workdir: of the run, gets the server's log; None puts that into a new folder for temporary files.
    longest_tokens: longest prompt and completion together that a server is started for; None: what the
      pretrained model is meant for.
    url, command, arguments, port, shared_folder, dtype, gap_limit_nats, start_timeout_s, timeout_s, retries,
      backoff_s, parallel_requests: see the config.

  Raises:
    ValueError: for a model that vLLM cannot serve, or a field that cannot be.
    ModuleNotFoundError: if a server is to be started with the package vllm and it is not installed.
  """
  module = language.module
  if not language.has_hf_form or language.max_positions is not None:
    what = "a model with memory" if not language.has_hf_form else "one with learned_positions"
    raise ValueError(f"config.sampler.kind='vllm' serves pretrained decoders, and not {what}; set "
                     "config.sampler.kind='native', which writes with any model")
  if like is None and longest_tokens is None:
    raise ValueError("config.sampler.kind='vllm' needs config.data.max_prompt_tokens for a model that was "
                     "made here: the server must know how long texts may be")
  served = dtype or module.dtype
  workdir = pathlib.Path(tempfile.mkdtemp(prefix="atlas_jax_") if workdir is None else workdir).resolve()
  exports = weights.Exports(module, like=like, shared_folder=shared_folder, workdir=workdir,
                            dtype=served, max_tokens=longest_tokens, in_memory=url is None)
  # Several processes have one server, and each gets what the first is given.
  engine = VLLMEngine(url=url, command=command, arguments=arguments, port=port, dtype=served,
                      longest_tokens=longest_tokens, workdir=workdir, start_timeout_s=start_timeout_s,
                      timeout_s=timeout_s, retries=retries, backoff_s=backoff_s) if hosts.is_main() else None
  if gap_limit_nats is None:
    # Either side may be the coarse one, and the gap is between both.
    gap_limit_nats = max(GAP_LIMIT_NATS.get(name, COARSE_GAP_LIMIT_NATS) for name in (served, module.dtype))
  run = hashlib.sha256(str(workdir).encode()).hexdigest()[:12]
  return VllmSampler(language, tokenizer, exports, engine, gap_limit_nats=gap_limit_nats, retries=retries,
                     parallel_requests=parallel_requests, run=run)


class VllmSampler:
  """Writes completions through a server of vLLM; see `sampler.Sampler`.

  Several processes call alike, the first of them asks the server, and each gets all that it gave.

  Attributes:
    stats: of the last hand-over: "start_s" of the server, 0 for one that was found, "hand_over_s" and
      "hand_over_gap_nats", the largest difference between its log-probabilities and ours.
  """

  def __init__(self, language: LanguageModel, tokenizer: Tokenizer, exports: weights.Exports,
               engine: VLLMEngine | None, *, gap_limit_nats: float, retries: int, parallel_requests: int,
               run: str):
    """Takes the parts that `make` builds; `run` tells this run's weights from another's."""
    self._language = language
    self._tokenizer = tokenizer
    self._exports = exports
    self._own = engine
    self._gap_limit_nats = gap_limit_nats
    self._retries = retries
    self._parallel_requests = parallel_requests
    self._run = run
    self._version: int | None = None
    self._max_tokens = 0
    self._probed = False
    self._scores: tuple[int, np.ndarray] | None = None  # Of the weights before, by version.
    self.stats: dict[str, float] = {}

  def load(self, params: Any, version: int) -> None:
    """Hands weights over and has the server prove that it has them; every process calls it.

    Args:
      params: whole; adapters are merged into what is handed over.
      version: of the weights.

    Raises:
      ServerError: if the server is dead, or computes something else with the weights than our own model.
      ValueError: if it is a server that cannot be used; see `VLLMEngine`.
    """
    self._version = None  # Until all went well, there is nothing to write with.
    began = time.monotonic()
    folder = self._exports.write(params)
    exported_s = time.monotonic() - began
    self._max_tokens, start_s = from_main(lambda: self._opened(folder))
    began = time.monotonic()
    # The label names run and version; `_write` looks at it before and after it asks.
    from_main(lambda: self._engine.reload(folder, f"{self._run}:{version}"))
    gap = self._check_scores(params, version)
    # Once is enough: the mode is set when a server starts.
    if not self._probed:
      self._check_mode(params)
      self._probed = True
    self._version = version
    self.stats = {"start_s": start_s, "hand_over_s": exported_s + time.monotonic() - began,
                  "hand_over_gap_nats": gap}
    logging.info("version %d of the weights handed over in %.2f s; largest gap %.2g nats", version,
                 self.stats["hand_over_s"], gap)

  def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions, seed: int) -> Rollout:
    """Writes completions; see `Sampler.generate`. All of them or, if anything fails, none.

    Raises:
      ServerError: if the server is dead or silent, or an answer is not whole.
      ValueError: before the first `load`, or if prompts or options are such that it would do something else.
    """
    if self._version is None:
      raise ValueError("the sampler has no weights yet; call load(params, version) first")
    self._check(prompts, options)
    version, rows = from_main(lambda: self._write(prompts, options, seed))
    written = [Completion(*row)._replace(version=version) for row in rows]
    rollout = samplers.assemble(written, pad_id=self._tokenizer.doc_id)
    samplers.check(rollout, prompts, options)
    return rollout

  def close(self) -> None:
    """Stops the server if this started it, and takes away the weights handed over in memory."""
    self._version = None
    if self._own is not None:
      self._own.close()
    self._exports.remove()

  @property
  def _engine(self) -> VLLMEngine:
    assert self._own is not None  # Only what `from_main` runs asks for it.
    return self._own

  def _opened(self, folder: pathlib.Path) -> tuple[int, float]:
    if not self._engine.opened:
      self._engine.open(folder, self._exports.temporary)
    return self._engine.max_tokens, self._engine.start_s

  def _write(self, prompts, options: SamplingOptions, seed: int) -> tuple[int, list[Completion]]:
    """Asks for all completions at the same time; gives them with the version that wrote them."""
    # Weights that another run hands over between the two looks would have written some of the completions.
    before = self._engine.label()
    with concurrent.futures.ThreadPoolExecutor(self._parallel_requests) as pool:
      # A seed for each place, so that a prompt's completions do not depend on the others.
      asked = [pool.submit(self._complete, list(map(int, prompt)), options,
                           StableRandom(seed, place).below(SEEDS)) for place, prompt in enumerate(prompts)]
      try:
        rows = [row for future in asked for row in future.result()]
      except KeyboardInterrupt:
        self._engine.close()  # So that nobody waits for what is under way.
        raise
      finally:
        pool.shutdown(wait=False, cancel_futures=True)
    after = self._engine.label()
    if before != after:
      raise ServerError(f"the server's weights changed from {before!r} to {after!r} while it wrote; is it "
                        "also used by another run?")
    return self._version_of(after), rows

  def _check(self, prompts, options: SamplingOptions) -> None:
    if not options.draws_from_all and options.temperature not in (0, 1):
      raise ValueError(
          f"config.sampler.temperature={options.temperature} with top_k, top_p, min_p or repetition_penalty: "
          "vLLM gives no log-probabilities over all ids for that, which training compares with its own; set "
          "the temperature to 1, leave the filters out, or set config.sampler.kind='native'")
    low, high = TEMPERATURES
    if options.temperature and not low <= options.temperature <= high:
      raise ValueError(f"config.sampler.temperature={options.temperature} is not possible with vLLM; it must "
                       f"be 0, or between {low} and {high}")
    # Filters make `_with_full_logprobs` score the whole text as a prompt, behind which one id must still fit.
    room = self._max_tokens - (0 if options.draws_from_all else 1)
    for place, prompt in enumerate(prompts):
      ids = np.asarray(prompt)
      check_prompt(ids, self._language.vocab_size, name=f"prompt {place}")
      if len(ids) + options.max_tokens > room:
        raise ValueError(
            f"prompt {place} has {len(ids)} ids; with config.sampler.max_tokens={options.max_tokens} more it "
            f"does not fit the {room} that the server takes, which would cut the completion; lower "
            "max_tokens or config.data.max_prompt_tokens, or start the server with a higher --max-model-len")

  def _complete(self, prompt: list[int], options: SamplingOptions, seed: int) -> list[Completion]:
    n = options.n if options.temperature else 1  # The likeliest ids are the same each time.
    for attempt in range(self._retries + 1):
      choices = self._engine.complete(
          prompt, n, max_tokens=options.max_tokens, temperature=options.temperature, seed=seed,
          top_k=options.top_k or -1, top_p=options.top_p or 1.0, min_p=options.min_p or 0.0,
          repetition_penalty=options.repetition_penalty, stop=list(options.stop_strings),
          stop_token_ids=list(options.stop_tokens))
      if all(choice.get("finish_reason") != "abort" for choice in choices):
        break
      logging.warning("the server aborted a completion; asking again (%d of %d)", attempt + 1, self._retries)
    else:
      raise ServerError(f"the server aborted a completion {self._retries + 1} times; is it being paused or "
                        "shut down? The same command goes on from the newest checkpoint")
    rows = [self._read(choice, options) for choice in choices] * (options.n // n)
    if not options.draws_from_all:
      rows = [self._with_full_logprobs(prompt, row) for row in rows]
    if not options.temperature:  # Nothing else could be drawn.
      rows = [row._replace(sampler_logprobs=[0.0] * len(row.tokens)) for row in rows]
    return rows

  def _read(self, choice: dict, options: SamplingOptions) -> Completion:
    """Returns a choice as a completion, cut where this code's own rules say so."""
    tokens = choice.get("token_ids")
    reason = choice.get("finish_reason")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    tokens = tokens or []
    logprobs = logprobs or []
    if len(tokens) != len(logprobs) or not 0 < len(tokens) <= options.max_tokens:
      raise ServerError(f"the server gave a completion with {len(tokens)} ids and {len(logprobs)} "
                        f"log-probabilities; it must give one for each id, and 1 to {options.max_tokens} ids")
    if None in logprobs or not np.isfinite(logprobs).all():
      at = next(i for i, value in enumerate(logprobs) if value is None or not np.isfinite(value))
      raise ServerError(f"the server gave no log-probability for id {tokens[at]}, number {at} of a "
                        "completion; weights that are not finite do that: look at the last steps' metrics")
    if not 0 <= min(tokens) <= max(tokens) < self._language.vocab_size:
      raise ServerError(f"the server gave ids from {min(tokens)} to {max(tokens)}; this model has 0.."
                        f"{self._language.vocab_size - 1}: see that it serves this model")
    # By the rules of the other samplers, so that a reason means the same of any.
    size, ended, text = stops.ending(tokens, options, self._tokenizer)
    if ended is None:
      # A stop string that its tokenizer spells and ours does not ends a text as well.
      if reason != "stop" or not isinstance(choice.get("stop_reason"), str):
        raise ServerError(f"the server ended a completion after {len(tokens)} of {options.max_tokens} ids "
                          f"for {reason!r} ({choice.get('stop_reason')!r}), which nothing asked for")
      ended = "stop_string"
    return Completion(tokens[:size], logprobs[:size], logprobs[:size], ended, text, 0)

  def _with_full_logprobs(self, prompt: list[int], row: Completion) -> Completion:
    # Entry i - 1 scores id i; the first id of the completion is number len(prompt).
    scores = self._engine.prompt_logprobs([*prompt, *row.tokens])
    return row._replace(full_logprobs=scores[len(prompt) - 1:])

  def _check_scores(self, params, version: int) -> float:
    """Returns the largest gap between the server's log-probabilities of a fixed prompt and our own."""
    tokens = self._probe_prompt()
    ours = weights.score(self._language, params, tokens)
    theirs = np.asarray(from_main(lambda: self._engine.prompt_logprobs(tokens)))
    gap = float(np.max(np.abs(ours - theirs)))
    before = self._scores
    self._scores = (version, ours)
    if gap <= self._gap_limit_nats:
      return gap
    stale = ""
    # Nearer to the weights before: the likeliest fault, and the one that no error would show.
    if before is not None and np.max(np.abs(before[1] - theirs)) < gap:
      stale = f" It is nearer to version {before[0]}: the server may not have taken the new weights."
    raise ServerError(
        f"with the weights of version {version} the server's log-probabilities differ from our own model's "
        f"by {gap:.3g} nats, more than config.vllm.gap_limit_nats={self._gap_limit_nats:g}.{stale} See that "
        "it serves this model, its head apart from its embedding; in bfloat16 a higher limit may be right")

  def _check_mode(self, params) -> None:
    """Refuses a server that reports log-probabilities of another distribution than it draws from."""
    probe = self._probe_prompt()
    count = min(DRAWN_TOKENS, len(probe) - 1)
    prompt = probe[:-count]
    choice = from_main(lambda: self._engine.complete(prompt, 1, max_tokens=count, seed=0,
                                                     temperature=PROBE_TEMPERATURE))[0]
    row = self._read(choice, SamplingOptions(max_tokens=count, temperature=PROBE_TEMPERATURE))
    gaps = [float(np.max(np.abs(weights.score(self._language, params, [*prompt, *row.tokens],
                                              temperature=temperature)[-count:] - row.sampler_logprobs)))
            # The same ids, scored tempered and not: one of the two must be what the server reports.
            for temperature in (PROBE_TEMPERATURE, 1.0)]
    if gaps[0] <= self._gap_limit_nats:
      return
    if gaps[1] <= self._gap_limit_nats:
      raise ValueError("the server reports log-probabilities without the temperature (at "
                       f"{PROBE_TEMPERATURE} they are {gaps[0]:.3g} nats off); start it with --logprobs-mode "
                       f"{MODE}")
    raise ServerError(f"at temperature {PROBE_TEMPERATURE} the server's log-probabilities differ from our "
                      f"own model's by {gaps[0]:.3g} nats, without it by {gaps[1]:.3g}; "
                      f"config.vllm.gap_limit_nats={self._gap_limit_nats:g} allows neither. Start it with "
                      f"--logprobs-mode {MODE}")

  def _probe_prompt(self) -> list[int]:
    count = min(PROBE_TOKENS, self._max_tokens - 1)
    return weights.fixed_prompt(self._language.vocab_size, count)

  def _version_of(self, label: str | None) -> int:
    """Returns the version of the weights that the server's label names."""
    if label is None:  # An older server, which keeps none.
      return int(self._version or 0)
    run, _, version = label.partition(":")
    if run != self._run or not version.isdigit():
      raise ServerError(f"the server's weights are labelled {label!r}, which is not of this run: it was "
                        "restarted, or another run uses it. The same command hands the weights over anew")
    return int(version)


def from_main(work: Callable[[], Any]) -> Any:
  """Runs something in the first process; every process calls this and gets its result, or its error.

  Args:
    work: () -> what JSON can hold; of several processes all but the first get named tuples as lists.
  """
  if jax.process_count() == 1:
    return work()
  from jax.experimental import multihost_utils  # Needs a started cluster only when it is used.
  result = None
  error = None
  if hosts.is_main():
    try:
      result = work()
    except (ValueError, OSError) as caught:
      error = caught
  text = np.frombuffer(json.dumps([result, None if error is None else str(error)]).encode(), np.uint8)
  # The size first: what is broadcast must have the same shape in every process.
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  shared = np.zeros(size, np.uint8)
  shared[:len(text) if hosts.is_main() else 0] = text if hosts.is_main() else 0
  shared = multihost_utils.broadcast_one_to_all(shared)
  # Where it happened the error keeps its type; elsewhere it is reported as the server's.
  if error is not None:
    raise error
  result, failure = json.loads(np.asarray(shared, np.uint8).tobytes())
  if failure is not None:
    raise ServerError(failure)
  return result
