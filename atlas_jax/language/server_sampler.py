"""Completions from a server of --mode=serve, which gets new weights for each rollout; users may ask it too.

Before a rollout the weights are written to a folder that the server reads, and it is told to take them. It
draws as `decoding.native` does, by the same seeds, so a run may change from one to the other. What it reports
is not believed but looked at: after each hand-over it writes a few ids, whose log-probabilities must be
those of our own model; after each rollout it must still have the weights that were given to it, and every
completion must be of their version.
"""
import concurrent.futures
import hashlib
import os
import pathlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.language import weights_file
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding import stops
from atlas_jax.language.decoding.sampler import Completion, Rollout, SamplingOptions, check_prompt
from atlas_jax.language.vllm import weights
from atlas_jax.language.vllm.client import Client, ServerError, words
from atlas_jax.language.vllm.sampler import COARSE_GAP_LIMIT_NATS, GAP_LIMIT_NATS, from_main
from atlas_jax.models import language as languages
from atlas_jax.models import lora
from atlas_jax.models.language import LanguageModel
from atlas_jax.parallel import hosts

TOKEN_VARIABLE = "ATLAS_JAX_SERVER_TOKEN"
WEIGHTS = "/v1/weights"
COMPLETIONS = "/v1/completions"
PROBE_TOKENS = 24  # Of the prompt that is answered after a hand-over.
DRAWN_TOKENS = 8   # Of its completion.
PROBE_TEMPERATURE = 0.5  # Not 1, so that log-probabilities without the temperature are found out.
REASONS = {"stop_token": "stop", "stop_string": "stop", "length": "length"}  # Ours -> the server's.
BOTH = ("sampler_logprobs", "full_logprobs")
LEAST_LOGPROB = -9999.0  # Stands for minus infinity in the server's answers.


def make(language: LanguageModel, tokenizer: Tokenizer, *, workdir, url, weights_folder, served_as,
         token_variable, gap_limit_nats, timeout_s, retries, backoff_s, parallel_requests) -> "ServerSampler":
  """Makes a sampler from the fields of config.server; asks nothing of the server yet.

  Args:
    language: the model that is trained; the server must serve a run of the same one.
    tokenizer: decodes completions.
    workdir: of the run; it tells this run's weights from another's. None: a run of its own.
    url, weights_folder, served_as, token_variable, gap_limit_nats, timeout_s, retries, backoff_s,
      parallel_requests: see the config.

  Raises:
    ValueError: for a field that is missing or cannot be, or without the token in the environment.
  """
  for name, value, needs in (("url", url, "the address of a server, such as http://127.0.0.1:8000"),
                             ("weights_folder", weights_folder, "the server's config.serve.weights_folder")):
    if value is None:
      raise ValueError(f"config.server.{name}=None; config.sampler.kind='server' needs {needs}. Start one "
                       "with: python -m atlas_jax.main --mode=serve --workdir=RUN "
                       "--config.serve.weights_folder=FOLDER")
  if gap_limit_nats is None:
    gap_limit_nats = GAP_LIMIT_NATS.get(language.module.dtype, COARSE_GAP_LIMIT_NATS)
  folder = pathlib.Path(weights_folder).expanduser()
  unique = secrets.token_hex() if workdir is None else pathlib.Path(workdir).resolve()
  run = hashlib.sha256(str(unique).encode()).hexdigest()[:12]
  client = None
  # Several processes have one server, and each gets what the first is given.
  if hosts.is_main():
    if not folder.is_dir():
      raise ValueError(f"config.server.weights_folder={str(weights_folder)!r} is no folder here; it must be "
                       "the server's config.serve.weights_folder")
    for left in folder.glob(f"{_stem(run)}*"):  # By a process of this run that was killed.
      left.unlink(missing_ok=True)
    client = Client(url, timeout_s=timeout_s, retries=retries, backoff_s=backoff_s, group="config.server",
                    bearer=_token(token_variable))
  return ServerSampler(language, tokenizer, client, folder, model=served_as, run=run,
                       gap_limit_nats=gap_limit_nats, parallel_requests=parallel_requests)


def _stem(run: str) -> str:
  return f"policy-{run}-"


def _token(variable: str | None) -> str:
  name = variable or TOKEN_VARIABLE
  token = os.environ.get(name, "").strip()
  # Checked here, because the library would show a token that no header can hold.
  if not token or not token.isascii() or not token.isprintable() or " " in token:
    what = "is not set" if not token else "holds no token: it has spaces or other than printable characters"
    raise ValueError(f"config.server.token_variable={variable!r}: {name} {what} in the environment; set it "
                     "to one of the server's ATLAS_JAX_SERVE_TRAINER_TOKENS")
  return token


class ServerSampler:
  """Writes completions through a server of --mode=serve; see `sampler.Sampler`.

  Several processes call alike, the first of them asks the server, and each gets all that it gave.

  Attributes:
    stats: of the last hand-over: "hand_over_s" and "hand_over_gap_nats", the largest difference between the
      server's log-probabilities and ours.
  """

  def __init__(self, language: LanguageModel, tokenizer: Tokenizer, client: Client | None,
               folder: pathlib.Path, *, model: str | None, run: str, gap_limit_nats: float,
               parallel_requests: int):
    """Takes the parts that `make` builds; `run` tells this run's weights from another's."""
    self._language = language
    module = language.module
    self._has_adapters = language.has_hf_form and module.lora is not None
    # The server has the model whose weights are handed over, adapters merged.
    self._whole = languages.from_decoder(module.copy(lora=None)) if self._has_adapters else language
    self._tokenizer = tokenizer
    self._own = client
    self._folder = folder
    self._model = model
    self._run = run
    self._gap_limit_nats = gap_limit_nats
    self._parallel_requests = parallel_requests
    self._version: int | None = None
    self._label: str | None = None  # Of the weights that the server took last.
    self._longest_tokens: int | None = None
    self.stats: dict[str, float] = {}

  def load(self, params: Any, version: int) -> None:
    """Hands weights over and has the server prove that it has them; every process calls it.

    Args:
      params: whole; adapters are merged into what is handed over.
      version: of the weights.

    Raises:
      ServerError: if the server is away, or computes something else with the weights than our own model.
      ValueError: if it takes no weights from us, or serves another model.
    """
    self._version = None  # Until all went well, there is nothing to write with.
    began = time.monotonic()
    self._model, self._longest_tokens = from_main(self._look_over)
    # A version is loaded again for an evaluation, and with other weights.
    nonce = secrets.token_hex(4)
    file = self._folder / f"{_stem(self._run)}{version}-{nonce}{weights_file.SUFFIX}"
    merged = lora.merge(params, self._language.module.lora) if self._has_adapters else params
    try:
      weights_file.write(file, self._whole, merged)
      self._label = from_main(lambda: self._hand_over(file, version, f"{self._run}:{version}:{nonce}"))
    finally:
      if hosts.is_main():
        file.unlink(missing_ok=True)
    gap = self._check_scores(params, version)
    self._version = version
    self.stats = {"hand_over_s": time.monotonic() - began, "hand_over_gap_nats": gap}
    logging.info("version %d of the weights handed over in %.2f s; largest gap %.2g nats", version,
                 self.stats["hand_over_s"], gap)

  def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions, seed: int) -> Rollout:
    """Writes completions; see `Sampler.generate`. All of them or, if anything fails, none.

    Raises:
      ServerError: if the server is away, or an answer is not whole, or of other weights than were loaded.
      ValueError: before the first `load`, or if prompts or options do not fit.
    """
    if self._version is None:
      raise ValueError("the sampler has no weights yet; call load(params, version) first")
    version = self._version
    self._check(prompts, options)
    rows = from_main(lambda: self._write(prompts, options, seed, version))
    rollout = samplers.assemble([Completion(*row) for row in rows], pad_id=self._tokenizer.doc_id)
    samplers.check(rollout, prompts, options, version=version)
    return rollout

  @property
  def _client(self) -> Client:
    assert self._own is not None  # Only what `from_main` runs asks for it.
    return self._own

  def _look_over(self) -> tuple[str, int | None]:
    """Returns the model's name and the longest text it takes; refuses one of another vocabulary."""
    served = self._served()
    name = next(iter(served)) if self._model is None else self._model
    if name not in served:
      raise ValueError(f"config.server.served_as={name!r} is not served by {self._client.url}; there are "
                       f"{', '.join(served)}")
    mine = served[name]
    if mine.get("vocab_size") != self._language.vocab_size:
      raise ValueError(f"{self._client.url} serves {name!r} with vocab_size={mine.get('vocab_size')}, and "
                       f"the model that is trained has {self._language.vocab_size}; serve a run of the same "
                       "model")
    return name, mine.get("max_model_len")

  def _served(self) -> dict[str, dict]:
    """Returns what the server says of the weights of each model."""
    answer = self._client.ask(WEIGHTS)
    found = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
      raise ServerError(f"{self._client.url}{WEIGHTS} answered {words(answer)!r}, which is no list of "
                        "weights; is it a server of --mode=serve?")
    return {str(one.get("model")): one for one in found}

  def _hand_over(self, file: pathlib.Path, version: int, label: str) -> str:
    """Has the server take a file's weights, in place of those that it took last."""
    asked: dict[str, Any] = {"model": self._model, "file": file.name, "version": version, "label": label}
    if self._label is not None:
      asked["after"] = self._label
    answer = self._client.ask(WEIGHTS, asked)
    took = {name: answer.get(name) for name in ("version", "label")} if isinstance(answer, dict) else answer
    if took != {"version": version, "label": label}:
      raise ServerError(f"{self._client.url}{WEIGHTS} was given version={version}, label={label!r} and "
                        f"answered {words(answer)!r}; nothing is written with weights that are not known")
    return label

  def _check_label(self) -> None:
    """Refuses what was written while the server had, or may have had, other weights than were loaded."""
    served = self._served()
    label = served[self._model].get("label") if self._model in served else None
    if label != self._label:
      raise ServerError(f"{self._client.url} has the weights {label!r} of {self._model!r} and not "
                        f"{self._label!r}, which this run gave to it: it was restarted, or another run gives "
                        "weights to it. The same command hands the weights over anew")

  def _write(self, prompts, options: SamplingOptions, seed: int, version: int) -> list[Completion]:
    """Asks for all completions, several prompts at the same time."""
    pool = concurrent.futures.ThreadPoolExecutor(self._parallel_requests)
    try:
      asked = [pool.submit(self._complete, list(map(int, prompt)), options, seed=seed, place=place,
                           version=version) for place, prompt in enumerate(prompts)]
      rows = [row for future in asked for row in future.result()]
    finally:
      # The first failure is told at once; what is under way ends by its own time limit.
      pool.shutdown(wait=False, cancel_futures=True)
    self._check_label()
    return rows

  def _check(self, prompts, options: SamplingOptions) -> None:
    most = self._longest_tokens
    for place, prompt in enumerate(prompts):
      ids = check_prompt(prompt, self._language.vocab_size, name=f"prompt {place}")
      if most is not None and len(ids) + options.max_tokens > most:
        raise ValueError(
            f"prompt {place} has {len(ids)} ids; with config.sampler.max_tokens={options.max_tokens} more it "
            f"does not fit the {most} that the server has room for; lower max_tokens or "
            "config.data.max_prompt_tokens, or start the server with a higher config.serve.room_tokens")

  def _complete(self, prompt: list[int], options: SamplingOptions, *, seed: int, place: int,
                version: int) -> list[Completion]:
    # Draws depend on seed, place and number alone, so requests may be cut in any way. Seeds of the API have a
    # sign; two's complement keeps all of them apart.
    asked = {"model": self._model, "prompt": prompt, "n": options.n, "max_tokens": options.max_tokens,
             "temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p,
             "min_p": options.min_p, "repetition_penalty": options.repetition_penalty,
             "seed": seed - 2**64 if seed >= 2**63 else seed, "place": place,
             "stop": list(options.stop_strings), "stop_token_ids": list(options.stop_tokens),
             # What ends a completion is ours to say. Ids come back as ids: text encoded again need not give
             # the same ones.
             "ignore_eos": True, "return_token_ids": True}
    answer = self._client.ask(COMPLETIONS, asked)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != options.n:
      got = len(choices) if isinstance(choices, list) else repr(words(answer))
      raise ServerError(f"{self._client.url}{COMPLETIONS} gave {got} of n={options.n} completions")
    return [self._read(choice, options, version) for choice in choices]

  def _read(self, choice: dict, options: SamplingOptions, version: int) -> Completion:
    """Returns a choice as a completion, whose end must be where this code's own rules put it."""
    tokens: Any = choice.get("token_ids")
    is_ids = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
    if not is_ids or not 0 < len(tokens) <= options.max_tokens:
      got = f"{len(tokens)} token_ids" if is_ids else "no token_ids"
      raise ServerError(f"{self._client.url}{COMPLETIONS} gave a completion with {got}; it must have 1 to "
                        f"{options.max_tokens}: is it a server of --mode=serve?")
    if not 0 <= min(tokens) <= max(tokens) < self._language.vocab_size:
      raise ServerError(f"the server gave token_ids from {min(tokens)} to {max(tokens)}; this model has 0.."
                        f"{self._language.vocab_size - 1}")
    for name in BOTH:
      _check_logprobs(name, choice.get(name), len(tokens))
    found = choice.get("weights_version")
    if found != version:
      raise ServerError(f"the server wrote a completion with weights_version={found}, and version={version} "
                        "was handed over to it: it was restarted, or another run gives weights to it. The "
                        "same command hands the weights over anew")
    size, reason, text = stops.ending(tokens, options, self._tokenizer)
    finish_reason = choice.get("finish_reason")
    if size != len(tokens) or reason is None or REASONS[reason] != finish_reason:
      raise ServerError(f"the server ended a completion of {len(tokens)} ids with finish_reason="
                        f"{finish_reason!r} ({choice.get('stop_reason')!r}), and by our tokenizer it ends "
                        f"after {size} for {reason!r}; serve the run with the tokenizer that is trained with")
    return Completion(tokens, choice[BOTH[0]], choice[BOTH[1]], reason, text, version)

  def _check_scores(self, params, version: int) -> float:
    """Returns the largest gap between the server's log-probabilities and our own, of a few ids it draws."""
    most = self._longest_tokens
    count = PROBE_TOKENS if most is None else max(1, min(PROBE_TOKENS, most - DRAWN_TOKENS))
    prompt = weights.fixed_prompt(self._language.vocab_size, count)
    options = SamplingOptions(max_tokens=DRAWN_TOKENS if most is None else min(DRAWN_TOKENS, most - count),
                              temperature=PROBE_TEMPERATURE)
    row = Completion(*from_main(lambda: self._complete(prompt, options, seed=0, place=0, version=version)[0]))
    ours = weights.score(self._language, params, [*prompt, *row.tokens], temperature=PROBE_TEMPERATURE)
    gap = float(np.max(np.abs(ours[-len(row.tokens):] - row.full_logprobs)))
    if not gap <= self._gap_limit_nats:
      raise ServerError(f"with the weights of version {version} the server's log-probabilities differ from "
                        f"our own model's by {gap:.3g} nats, more than config.server.gap_limit_nats="
                        f"{self._gap_limit_nats:g}; see that it serves this model, in the same dtype")
    return gap


def _check_logprobs(name: str, values: Any, size: int) -> None:
  if not isinstance(values, list) or len(values) != size:
    got = f"{len(values)} {name}" if isinstance(values, list) else f"no {name}"
    raise ServerError(f"the server gave {got} for {size} ids; it must give one for each")
  if not all(isinstance(value, int | float) and LEAST_LOGPROB < value for value in values):
    raise ServerError(f"the server gave {name} that are no log-probabilities: {str(values)[:200]}; weights "
                      "that are not finite do that: look at the last steps' metrics")
