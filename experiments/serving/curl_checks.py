"""Checks with the program `curl`: plain requests, streams, bodies in pieces, old HTTP, errors."""
import json
import subprocess

from experiments.serving.target import DoesNotApply, Target

JSON = ("-H", "Content-Type: application/json")


def curl(at: Target, *arguments: str, given: bytes | None = None) -> tuple[int, str]:
  """Returns the status and what curl printed."""
  token = ("-H", f"Authorization: Bearer {at.token}") if at.token else ()
  done = subprocess.run(["curl", "-sS", "--max-time", "120", "-w", "\n%{http_code}", *token, *arguments],
                        input=given, capture_output=True, check=True)
  body, _, status = done.stdout.decode().rpartition("\n")
  return int(status), body


def body_of(at: Target, **fields) -> str:
  """Returns a request for a completion."""
  return json.dumps({"model": at.model, "prompt": "def f", "max_tokens": 8, "seed": 1} | fields)


def plain(at: Target) -> None:
  """completion, models, health, metrics"""
  status, body = curl(at, f"{at.api}/completions", *JSON, "-d", body_of(at))
  assert (status, json.loads(body)["object"]) == (200, "text_completion")
  assert json.loads(curl(at, f"{at.url}/health")[1]) == {"status": "ok"}
  assert json.loads(curl(at, f"{at.api}/models")[1])["object"] == "list"
  assert "atlas_jax_requests_total" in curl(at, f"{at.url}/metrics")[1]


def streamed(at: Target) -> None:
  """-N: streaming, data lines and [DONE]"""
  status, body = curl(at, "-N", f"{at.api}/completions", *JSON, "-d",
                      body_of(at, stream=True, stream_options={"include_usage": True}))
  lines = [line for line in body.split("\n") if line]
  assert status == 200
  assert all(line.startswith("data: ") for line in lines)
  assert lines[-1] == "data: [DONE]"
  events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
  whole = json.loads(curl(at, f"{at.api}/completions", *JSON, "-d", body_of(at))[1])
  assert "".join(one["choices"][0]["text"] for one in events[:-1]) == whole["choices"][0]["text"]
  assert events[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def chat_streamed(at: Target) -> None:
  """-N: streaming of a chat and of a response"""
  at.need_chat()
  user = [{"role": "user", "content": "hello"}]
  chat = json.dumps({"model": at.model, "messages": user, "stream": True, "max_tokens": 8})
  assert curl(at, "-N", f"{at.api}/chat/completions", *JSON, "-d", chat)[1].rstrip().endswith("[DONE]")
  response = json.dumps({"model": at.model, "input": "hello", "stream": True, "max_output_tokens": 8})
  body = curl(at, "-N", f"{at.api}/responses", *JSON, "-d", response)[1]
  assert body.startswith("event: response.created\ndata: {")


def ways_to_send(at: Target) -> None:
  """HTTP/1.0, chunked and large bodies, Expect: 100-continue, two requests on one connection"""
  data = body_of(at)
  assert curl(at, "--http1.0", f"{at.api}/completions", *JSON, "-d", data)[0] == 200
  chunked = ("-H", "Transfer-Encoding: chunked")
  from_input = ("--data-binary", "@-")
  assert curl(at, f"{at.api}/completions", *JSON, *chunked, *from_input, given=data.encode())[0] == 200
  large = json.dumps({"tokens": [65] * 200_000}).encode()
  status, body = curl(at, f"{at.url}/detokenize", *JSON, "-H", "Expect: 100-continue", *from_input,
                      given=large)
  assert (status, len(json.loads(body)["prompt"]) > 0) == (200, True)
  body = curl(at, f"{at.url}/health", f"{at.url}/health")[1]
  assert body.count('"ok"') == 2
  assert curl(at, "--http2", f"{at.url}/health")[0] == 200  # It asks for an upgrade, and goes on without.


def tokens(at: Target) -> None:
  """tokenize and detokenize: a text comes back"""
  found = json.loads(curl(at, f"{at.url}/tokenize", *JSON, "-d", json.dumps({"prompt": "grün 你好"}))[1])
  again = json.dumps({"tokens": found["tokens"]})
  assert json.loads(curl(at, f"{at.url}/detokenize", *JSON, "-d", again)[1]) == {"prompt": "grün 你好"}


def errors(at: Target) -> None:
  """errors: status and shape"""
  cases = [
      (400, ("-d", "{"), "/v1/completions"), (400, ("-d", '{"prompt": 1.5}'), "/v1/completions"),
      (404, ("-d", '{"model": "none", "prompt": "x"}'), "/v1/completions"), (404, (), "/nothing"),
      (405, ("-X", "DELETE"), "/v1/completions"), (405, (), "/v1/completions")]
  for status, arguments, path in cases:
    found, body = curl(at, f"{at.url}{path}", *JSON, *arguments)
    assert found == status, (path, found)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
  # Without the type of JSON, as curl sends a form.
  assert curl(at, f"{at.api}/completions", "-d", body_of(at))[0] == 415


def needs_token(at: Target) -> None:
  """errors: no token, another token"""
  if not at.token:
    raise DoesNotApply("the server was started without tokens")
  for token in ("", "Bearer none", "Basic bm9uZQ=="):
    bare = Target(at.url, "", at.model, at.described)
    header = ("-H", f"Authorization: {token}") if token else ()
    status, body = curl(bare, f"{at.api}/models", *header)
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


CHECKS = (plain, streamed, chat_streamed, ways_to_send, tokens, errors, needs_token)
