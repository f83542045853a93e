"""A stand-in for vLLM's server: the same routes, statuses and shapes, over a tiny model read by our own code.

What it answers follows the exchanges in tests/fixtures/vllm_http. It draws with a generator of its own, one
per seed, gives the log-probabilities of the mode asked for, and keeps the head of a model whose head is the
embedding when weights are reloaded, as vLLM does on a CPU. `fail` makes it go wrong.

  python -m tests.language.vllm.stub --model FOLDER --port 8000 --logprobs-mode processed_logprobs
"""

import argparse
import collections
import http.server
import json
import os
import pathlib
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language.pretrained import hf_import
from atlas_jax.models import head

GATED = ("/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/weight_info", "/server_info")


class Failed(Exception):
  """A request that ends with an error status."""

  def __init__(self, status: int, message: str, kind: str):
    """Takes what the answer says."""
    super().__init__(message)
    self.status, self.kind = status, kind


class Engine:
  """What the server computes, without HTTP."""

  def __init__(self, folder, *, name="tiny", max_model_len=64, mode="processed_logprobs", dtype="float32",
               dev_mode=True):
    """Reads the model of a folder."""
    self.root, self.name, self.max_model_len = str(folder), name, max_model_len
    self.mode, self.dtype, self.dev_mode = mode, dtype, dev_mode
    self.model, self.params, _ = hf_import.load(str(folder))
    self.version = "default"
    self.reloads: list[str] = []
    self.asked: list[dict] = []  # bodies of /v1/completions
    self.routes: collections.Counter = collections.Counter()
    self.lock = threading.Lock()
    self.head = head.head_weights(self.params)
    self._score = jax.jit(self._logits)

  def _logits(self, params, head_DV, tokens_BT):
    return self.model.apply({"params": params}, tokens_BT).hidden_BTD @ head_DV

  def logits(self, rows: list[list[int]]) -> list[np.ndarray]:
    """Scores every place of some texts; one shape for all, so that there is one compilation."""
    tokens_BT = np.zeros((4, self.max_model_len), np.int32)
    found = []
    for start in range(0, len(rows), 4):
      part = rows[start : start + 4]
      for at, row in enumerate(part):
        tokens_BT[at, : len(row)] = row
      logits_BTV = np.asarray(self._score(self.params, self.head, jnp.asarray(tokens_BT)), np.float64)
      found += [logits_BTV[at, : len(row)] for at, row in enumerate(part)]
    return found

  def reload(self, folder: str) -> None:
    """Takes the weights of a folder in place of its own."""
    if not pathlib.Path(folder).is_dir():
      raise Failed(500, f"Worker failed with error '{folder} is no folder'", "InternalServerError")
    params = hf_import.load(folder)[1]
    self.params = {name: params[name] for name in self.params}
    if not self.model.tied:  # A packed head that is the embedding stays as it was.
      self.head = head.head_weights(params)
    self.reloads.append(folder)

  def complete(self, body: dict) -> list[dict]:
    """Returns the choices of a request."""
    n, prompt, greedy = body.get("n", 1), body["prompt"], not body.get("temperature", 1.0)
    if body.get("model") != self.name:
      raise Failed(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    if n < 1 or (greedy and n > 1):
      what = "n must be 1 when using greedy sampling" if greedy else "n must be at least 1"
      raise Failed(400, f"{what}, got {n}.", "BadRequestError")
    if not prompt or max(prompt) >= self.model.vocab_size or len(prompt) >= self.max_model_len:
      raise Failed(400, "Token id out of vocabulary, or no room", "BadRequestError")
    room = min(body.get("max_tokens", 16), self.max_model_len - len(prompt))
    rows = [self._start(prompt, (body.get("seed") or 0) + index) for index in range(n)]
    stops = set(body.get("stop_token_ids") or ()) | (set() if body.get("ignore_eos") else {258})
    while going := [row for row in rows if row["why"] is None]:
      for row, logits_TV in zip(going, self.logits([prompt + row["ids"] for row in going])):
        self._draw(row, prompt, logits_TV[-1], body)
        if row["ids"][-1] in stops:
          row["why"] = ("stop", row["ids"][-1])
        elif len(row["ids"]) == room:
          row["why"] = ("length", None)
    prompt_logprobs = self._prompt_logprobs(prompt) if body.get("prompt_logprobs") is not None else None
    return [self._choice(index, row, prompt, prompt_logprobs, body) for index, row in enumerate(rows)]

  def _start(self, prompt, seed):
    return {"ids": [], "logprobs": [], "why": None, "draw": np.random.default_rng(seed % 2**63)}

  def _draw(self, row, prompt, logits_V, body):
    raw_V = log_softmax(logits_V)
    seen = sorted({*prompt, *row["ids"]})
    penalty = body.get("repetition_penalty", 1.0)
    logits_V = logits_V.copy()
    logits_V[seen] = np.where(logits_V[seen] > 0, logits_V[seen] / penalty, logits_V[seen] * penalty)
    temperature = body.get("temperature", 1.0)
    if not temperature:
      token, drawn_V = int(np.argmax(logits_V)), log_softmax(logits_V)
    else:
      drawn_V = log_softmax(filtered(logits_V / temperature, body))
      chances_V = np.exp(drawn_V)
      token = int(row["draw"].choice(len(chances_V), p=chances_V / chances_V.sum()))
    row["ids"].append(token)
    row["logprobs"].append(float((raw_V if self.mode == "raw_logprobs" else drawn_V)[token]))

  def _prompt_logprobs(self, prompt):
    scores_TV = [log_softmax(logits_V) for logits_V in self.logits([prompt])[0]]
    return [None] + [
      {str(token): {"logprob": float(scores_TV[at][token]), "rank": 1, "decoded_token": None}}
      for at, token in enumerate(prompt[1:])
    ]

  def _choice(self, index, row, prompt, prompt_logprobs, body):
    names = [f"token_id:{token}" for token in row["ids"]]
    given = {"text_offset": [0] * len(names), "token_logprobs": row["logprobs"], "tokens": names,
             "top_logprobs": [{name: value} for name, value in zip(names, row["logprobs"])]}
    wants_ids = body.get("return_token_ids")
    return {"index": index, "text": "", "logprobs": given if body.get("logprobs") is not None else None,
            "finish_reason": row["why"][0], "stop_reason": row["why"][1],
            "token_ids": row["ids"] if wants_ids else None, "prompt_logprobs": prompt_logprobs,
            "prompt_token_ids": prompt if wants_ids else None, "routed_experts": None}


def log_softmax(logits_V):
  """Returns log-probabilities."""
  shifted_V = logits_V - logits_V.max()
  return shifted_V - np.log(np.exp(shifted_V).sum())


def filtered(logits_V, body):
  """Takes out what top_k, top_p and min_p leave out."""
  chances_V = np.exp(log_softmax(logits_V))
  keep_V = chances_V >= (body.get("min_p") or 0.0) * chances_V.max()
  if (body.get("top_k") or -1) > 0:
    keep_V &= logits_V >= np.sort(logits_V)[-body["top_k"]]
  if body.get("top_p", 1.0) < 1:
    order_V = np.argsort(-np.where(keep_V, chances_V, 0))
    kept_V = np.where(keep_V, chances_V, 0)[order_V] / chances_V[keep_V].sum()
    keep_V[order_V[np.cumsum(kept_V) - kept_V >= body["top_p"]]] = False
  return np.where(keep_V, logits_V, -np.inf)


class Stub(http.server.ThreadingHTTPServer):
  """The server; `with Stub(engine) as stub` answers at `stub.url`."""

  daemon_threads = True
  request_queue_size = 64

  def __init__(self, engine: Engine, port: int = 0):
    """Listens on a port of the loopback, 0 for any."""
    super().__init__(("127.0.0.1", port), Handler)
    self.engine, self.url = engine, f"http://127.0.0.1:{self.server_address[1]}"
    self._failures: list[tuple[str, str | None]] = []

  def __enter__(self):
    """Starts answering."""
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *_):
    """Stops answering."""
    self.shutdown()
    self.server_close()

  def fail(self, how: str, times: int = 1, route: str = "/v1/completions", after: int = 0) -> None:
    """Makes requests to a route fail, the next ones or those after so many.

    Args:
      how: a status, "drop" (no answer), "slow", "null" (a log-probability), "short" (less than it says it
        did), "few" (choices), "beyond" (an id outside the vocabulary) or "abort".
      times: how many fail.
      route: which requests.
      after: how many of them go well before.
    """
    self._failures += [(route, None)] * after + [(route, how)] * times

  def failure(self, route: str) -> str | None:
    """Returns how this request fails, None if it does not."""
    with self.engine.lock:
      for at, (where, how) in enumerate(self._failures):
        if where == route:
          del self._failures[at]
          return how
    return None


class Handler(http.server.BaseHTTPRequestHandler):
  """One request."""

  protocol_version = "HTTP/1.1"
  server: Stub

  def log_message(self, *_):
    """Says nothing."""

  def do_GET(self):
    """Answers a question without a body."""
    self._answer(None)

  def do_POST(self):
    """Answers a question with one."""
    self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

  def _answer(self, body):
    route = self.path.partition("?")[0]
    self.server.engine.routes[route] += 1
    how = self.server.failure(route)
    if how == "drop":
      self.close_connection = True
      self.connection.close()
      return
    if how == "slow":
      time.sleep(2.0)
    try:
      if how is not None and how.isdigit():
        raise Failed(int(how), "EngineCore encountered an issue.", "InternalServerError")
      status, content = 200, self._content(route, body, how)
    except Failed as failed:
      status = failed.status
      content = {"error": {"message": str(failed), "type": failed.kind, "param": None, "code": status}}
    data = b"" if content is None else json.dumps(content).encode()
    try:
      self.send_response(status)
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)
    except OSError:  # Who asked has given up.
      self.close_connection = True

  def _content(self, route, body, how):
    engine = self.server.engine
    if route in GATED and not engine.dev_mode:
      raise Failed(404, "Not Found", "NotFoundError")
    if route == "/health":
      return None
    if route == "/v1/models":
      model = {"id": engine.name, "object": "model", "created": 0, "owned_by": "vllm", "root": engine.root,
               "parent": None, "max_model_len": engine.max_model_len, "permission": []}
      return {"object": "list", "data": [model]}
    if route == "/server_info":
      return {"vllm_config": {"model_config": {"dtype": f"torch.{engine.dtype}"}}}
    if route == "/weight_info":
      return {"weight_version": engine.version}
    if route == "/update_weight_version":
      engine.version = body["new_version"]
      return {"success": True, "new_version": engine.version}
    if route == "/reset_prefix_cache":
      return {"success": how != "short"}
    if route == "/collective_rpc" and body["method"] == "reload_weights":
      if how != "short":  # Says that it is done, and is not.
        engine.reload(body["kwargs"]["weights_path"])
      return {"results": [None]}
    if route == "/v1/completions":
      return self._completions(engine, body, how)
    raise Failed(404, "Not Found", "NotFoundError")

  def _completions(self, engine, body, how):
    with engine.lock:
      engine.asked.append(body)
      choices = engine.complete(body)
    if how == "null":
      choices[-1]["logprobs"]["token_logprobs"][-1] = None
    if how == "short":
      choices[-1]["token_ids"].pop()
      choices[-1]["logprobs"]["token_logprobs"].pop()
    if how == "few":
      choices.pop()
    if how == "beyond":
      choices[-1]["token_ids"][0] = 10**6
    if how == "abort":
      choices[-1]["finish_reason"] = "abort"
    return {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": engine.name,
            "choices": choices, "service_tier": None, "system_fingerprint": "stub", "usage": {},
            "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}


def main(argv) -> None:
  """Serves until the process is ended."""
  parser = argparse.ArgumentParser()
  for name, kind, default in (("model", str, None), ("served-model-name", str, "tiny"), ("port", int, 8000),
                              ("host", str, ""), ("dtype", str, "float32"), ("max-model-len", int, 64),
                              ("logprobs-mode", str, "raw_logprobs"), ("generation-config", str, "auto")):
    parser.add_argument(f"--{name}", type=kind, default=default)
  parser.add_argument("--skip-tokenizer-init", action="store_true")
  asked = parser.parse_args(argv)
  engine = Engine(asked.model, name=asked.served_model_name, max_model_len=asked.max_model_len,
                  mode=asked.logprobs_mode, dtype=asked.dtype,
                  dev_mode=os.environ.get("VLLM_SERVER_DEV_MODE") == "1")
  with Stub(engine, asked.port):
    threading.Event().wait()


if __name__ == "__main__":
  main(sys.argv[1:])
