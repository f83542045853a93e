"""A vLLM server as this code uses it: started or found, looked over, and asked through its routes."""
import importlib.util
import os
import pathlib
import shlex
import sys
import time
import weakref
from typing import Any

from absl import logging

from atlas_jax.files import json_file
from atlas_jax.language.vllm import server, weights
from atlas_jax.language.vllm.client import Client, ServerError, words
from atlas_jax.workdir import VLLM_LOG

MODULE = "vllm.entrypoints.openai.api_server"
NAME = "atlas"  # What the model is called in a server that is started here.
MODE = "processed_logprobs"  # Of what is drawn from; vLLM's default leaves the temperature out.
# Routes for development change weights; nothing is fetched or reported, since all there is lies in a folder.
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
               "HF_HUB_OFFLINE": "1"}
LOOK_EVERY_S = 0.25
LOOK_TIMEOUT_S = 10.0


class VLLMEngine:
  """A server; nothing is asked of it before `open`. Of a run's processes the first alone has one.

  Attributes:
    opened: whether `open` has succeeded.
    max_tokens: longest prompt and completion together that it takes.
    start_s: how long it took to start, 0 for one that was found.
  """

  def __init__(self, *, url: str | None, command: str | None, arguments: str, port: int | None, dtype: str,
               longest_tokens: int | None, workdir, start_timeout_s: float, timeout_s: float, retries: int,
               backoff_s: float):
    """Takes the fields of config.vllm and refuses what can be refused before a server starts.

    Raises:
      ValueError: if the command is no program, the port is taken or the URL is none.
      ModuleNotFoundError: if vllm is to be started and is not installed.
    """
    self._found = url is not None
    self._dtype = dtype
    self._longest_tokens = longest_tokens
    self._start_timeout_s = start_timeout_s
    self._log = pathlib.Path(workdir) / VLLM_LOG
    self._server: server.Server | None = None
    self._model = NAME
    self.opened = False
    self.max_tokens = 0
    self.start_s = 0.0
    self._command: list[str] = []
    self._port = 0
    if url is None:
      self._command = [*_program(command), *shlex.split(arguments)]
      self._port = server.free_port(port)
      url = f"http://127.0.0.1:{self._port}"
    self._client = Client(url, timeout_s=timeout_s, retries=retries, backoff_s=backoff_s)

  def open(self, folder: pathlib.Path, temporary: pathlib.Path | None = None) -> None:
    """Starts the server on a folder, or finds it, and looks it over.

    Args:
      folder: a pretrained model with the weights that training has now.
      temporary: a folder that goes when a server that is started here does.

    Raises:
      ServerError: if there is none in time, or it ends while it starts.
      ValueError: if it serves another model, in another dtype, or one whose head is the embedding.
    """
    if self._found:
      try:
        self._client.ask("/health")
      except ServerError as error:
        raise ServerError(f"{error}; the weights lie ready, so it may be started by "
                          f"{self.how_to_start(folder)}") from None
    else:
      self._start(folder, temporary)
    self._look_over(folder)
    self.opened = True

  def how_to_start(self, folder: pathlib.Path) -> str:
    """Returns the command line of a server for this run."""
    variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return " ".join([*variables, shlex.join(["python", "-m", MODULE, *self._flags(folder)])])

  def reload(self, folder: pathlib.Path, label: str) -> None:
    """Has the server take the weights of a folder, and forget what it computed with those before.

    Raises:
      ServerError: if it fails, after which a server has no whole weights.
      ValueError: if it is one whose weights cannot be changed.
    """
    # Disk rather than CUDA transports, so that any device serves; the folder may lie in memory.
    asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    if self._client.ask("/collective_rpc", asked, optional=True) is None:
      raise ValueError(f"{self._client.url} has no route /collective_rpc, so its weights cannot be changed; "
                       "start it with the environment variable VLLM_SERVER_DEV_MODE=1")
    # Keys and values of prompts that were computed with the old weights would be used with the new ones.
    done = self._client.ask("/reset_prefix_cache", {})
    if not isinstance(done, dict) or not done.get("success"):
      raise ServerError(f"{self._client.url}/reset_prefix_cache did not empty the cache ({words(done)}), "
                        "which holds what older weights computed; is the server also used by others?")
    self._client.ask("/update_weight_version", {"new_version": label}, optional=True)

  def label(self) -> str | None:
    """Returns what `reload` labelled the server's weights with, or None where servers keep no label."""
    answer = self._client.ask("/weight_info", optional=True)
    return answer.get("weight_version") if isinstance(answer, dict) else None

  def complete(self, prompt: list[int], n: int, **fields) -> list[dict]:
    """Asks for n completions of a prompt, whatever end-of-text id the model has.

    Args:
      prompt: ids.
      n: how many.
      **fields: further ones of /v1/completions.

    Raises:
      ServerError: if there are not n of them.
    """
    # logprobs=0: of the drawn id alone. ignore_eos: what ends a completion is stop_token_ids, not the
    # server's idea of it. Ids come back as ids, since text encoded again need not give the same ones.
    asked = {"model": self._model, "prompt": prompt, "n": n, "logprobs": 0, "ignore_eos": True,
             "return_token_ids": True, "return_tokens_as_token_ids": True, **fields}
    answer = self._client.ask("/v1/completions", asked)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != n:
      got = len(choices) if isinstance(choices, list) else repr(words(answer))
      raise ServerError(f"{self._client.url}/v1/completions gave {got} of {n} completions; is it a server of "
                        "vLLM, of 0.10.2 or later?")
    # Choices carry their number, and the order of rows depends on it.
    return sorted(choices, key=lambda choice: choice["index"])

  def prompt_logprobs(self, tokens: list[int]) -> list[float]:
    """Returns the untempered log-probability of each id but the first."""
    # A server writes one id at least; it is not read.
    choice = self.complete(tokens, 1, max_tokens=1, temperature=0, prompt_logprobs=0)[0]
    # Nothing predicts the first id, so its entry is null.
    given: list[Any] = (choice.get("prompt_logprobs") or [None])[1:]
    found = [(entry or {}).get(str(token), {}).get("logprob")
             for entry, token in zip(given, tokens[1:], strict=False)]
    if len(found) != len(tokens) - 1 or None in found:
      raise ServerError(f"{self._client.url}/v1/completions gave no log-probability for some of "
                        f"{len(tokens)} ids of a prompt: weights may be NaN, or it is no server of vLLM")
    return found

  def close(self) -> None:
    """Stops the server if it was started here."""
    self.opened = False
    if self._server is not None:
      self._server.stop()

  def _start(self, folder: pathlib.Path, temporary: pathlib.Path | None) -> None:
    began = time.monotonic()
    self._server = server.Server([*self._command, *self._flags(folder)], self._log,
                                 environment={**os.environ, **ENVIRONMENT}, temporary=temporary)
    # Also at the end of the program, and when nobody holds this object any more.
    weakref.finalize(self, self._server.stop)
    self._client.death = self._server.death
    # A server is silent until its model is loaded, and one that failed has ended its process.
    while self._client.once("/health", timeout_s=LOOK_TIMEOUT_S).status != 200:
      dead = self._client.death()
      if dead is not None:
        hint = "; it needs atlas_jax[vllm]" if "No module named" in dead else ""
        raise ServerError(f"config.vllm.command: {dead}{hint}")
      if time.monotonic() - began > self._start_timeout_s:
        raise ServerError(f"the server did not start within config.vllm.start_timeout_s="
                          f"{self._start_timeout_s:g} s; its log is {self._log}")
      time.sleep(LOOK_EVERY_S)
    self.start_s = time.monotonic() - began
    logging.info("vLLM serves at %s after %.1f s; its log is %s", self._client.url, self.start_s, self._log)

  def _flags(self, folder: pathlib.Path) -> list[str]:
    # vllm: defaults of sampling come from the server, not from a generation_config.json in the folder, which
    # would change what is drawn.
    flags = {"model": folder, "served-model-name": NAME, "dtype": self._dtype, "logprobs-mode": MODE,
             "generation-config": "vllm"}
    if not self._found:
      flags.update(host="127.0.0.1", port=self._port)
    if self._longest_tokens is not None:
      flags["max-model-len"] = self._longest_tokens
    words_ = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return words_ if weights.has_tokenizer(folder) else [*words_, "--skip-tokenizer-init"]

  def _look_over(self, folder: pathlib.Path) -> None:
    answer = self._client.ask("/v1/models")
    try:
      # Adapters stand in the list too, each with the model that it belongs to as its parent.
      model = next(model for model in answer["data"] if model.get("parent") is None)
      self._model = model["id"]
      self.max_tokens = model["max_model_len"]
      root = pathlib.Path(model["root"])
    except (KeyError, TypeError, StopIteration):
      raise ServerError(f"{self._client.url}/v1/models answered {words(answer)!r}, which is no list of "
                        "models; is it a server of vLLM?") from None
    if not self._found:
      # A server of someone else on this port would answer all questions as well, with another model.
      if root.resolve() != folder.resolve():
        raise ServerError(f"{self._client.url} serves {root} and not {folder}: another program's server "
                          "answers there; set config.vllm.port to another")
      return
    config = root / "config.json"
    if config.is_file() and json_file.read(config).get("tie_word_embeddings"):
      raise ValueError(f"{self._client.url} serves {root}, whose head is its embedding "
                       "(tie_word_embeddings); vLLM may keep the old head when weights change. Start it on "
                       f"the export of this run: {self.how_to_start(folder)}")
    # A server that was started here was told; of others this asks, which may take it seconds.
    info = self._client.ask("/server_info?config_format=json", optional=True)
    try:
      dtype = info["vllm_config"]["model_config"]["dtype"].removeprefix("torch.")
    except (KeyError, TypeError, AttributeError):
      return  # The first hand-over is checked all the same.
    if dtype != self._dtype:
      raise ValueError(f"{self._client.url} computes in {dtype}, config.vllm.dtype is {self._dtype}; start "
                       f"it with --dtype {self._dtype}, or set config.vllm.dtype={dtype}")


def _program(command: str | None) -> list[str]:
  if command is not None:
    return server.program(command, f"name the Python of an environment that has vllm, as in "
                                        f"'ENV/bin/python -m {MODULE}'")
  if importlib.util.find_spec("vllm") is None:
    raise ModuleNotFoundError("config.sampler.kind='vllm' starts a server with the package vllm: pip install "
                              "'atlas_jax[vllm]', or set config.vllm.command to another environment's, or "
                              "config.vllm.url to a server that runs")
  return [sys.executable, "-m", MODULE]
