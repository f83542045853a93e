"""Hostile and malformed requests by seed and number: the same bytes whenever they are made.

`attack(seed, n)` is one of the functions below, at random; what it may be answered stands beside it.
"""
import json
import random
from typing import NamedTuple

TEXT, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
ROUTES = (TEXT, CHAT, RESPONSES, "/tokenize", "/detokenize", "/v1/memory")
REFUSED, BELOW_500, NOTHING = "4xx", "below 500", "nothing, or below 500"
SLOW_ONE_IN = 100  # Slow ones last as long as the server waits, so there are few.


class Attack(NamedTuple):
  """One connection of an attacker.

  Attributes:
    name: of the function that drew it.
    parts: bytes that are sent one after the other; a number is a pause in seconds.
    expects: REFUSED, BELOW_500, or NOTHING where the connection may be left without an answer.
    answers: how many are waited for; 0: the attacker is gone at once.
    closes: whether the attacker says behind its last byte that no more comes.
  """

  name: str
  parts: tuple[bytes | float, ...]
  expects: str = REFUSED
  answers: int = 1
  closes: bool = False


def attack(seed: int, number: int) -> Attack:
  """Returns attack `number` of a seed."""
  draw = random.Random(f"{seed} {number}")
  kinds = SLOW if draw.randrange(SLOW_ONE_IN) == 0 else QUICK
  kind = draw.choice(kinds)
  return kind(draw)._replace(name=kind.__name__)


def request(path: str, body: bytes, *headers: str, method: str = "POST", kind: str = "application/json",
            host: str = "localhost") -> bytes:
  """Returns the bytes of a request."""
  lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}",
           f"Content-Length: {len(body)}", *headers, "", ""]
  return "\r\n".join(lines).encode("utf-8", "surrogateescape") + body


def head(path: str, *headers: str) -> bytes:
  """Returns the first lines of a request whose body is to follow."""
  return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def posted(path: str, fields) -> bytes:
  """Returns a request with a JSON body."""
  return request(path, json.dumps(fields).encode())


def base(path: str) -> dict:
  """Returns a request that would be answered."""
  few = {"max_tokens": 2, "temperature": 0}
  messages = [{"role": "user", "content": "hi"}]
  return {TEXT: {"prompt": "hi", **few}, CHAT: {"messages": messages, **few},
          RESPONSES: {"input": "hi", "max_output_tokens": 2}, "/tokenize": {"prompt": "hi"},
          "/detokenize": {"tokens": [1, 2]}, "/v1/memory": {"tokens": [1, 2]}}[path]  # fmt: skip


# ------------------------------------------------------------------------------------------------- bodies


def no_json(draw):
  texts = [b"", b"{", b"[]", b"null", b'"x"', b"1", b"{'prompt': 1}", b'{"prompt": "x",}', b"\x00" * 9,
           b"prompt=x", b'{"prompt": 1}{"prompt": 2}', b'{"prompt": "\n"}', b'{"prompt": .5}',
           b'{"prompt": 0x10}', b"<a/>", draw.randbytes(draw.randrange(1, 300))]
  return Attack("", (request(draw.choice(ROUTES), draw.choice(texts)),))


def no_utf8(draw):
  bad = draw.choice([b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xff"])
  body = b'{"prompt": "' + b"a" * draw.randrange(3) + bad + b'"}'
  return Attack("", (request(draw.choice(ROUTES), draw.choice([body,
                                                               body.decode("latin-1").encode("utf-16")])),))


def deep_json(draw):
  depth = draw.choice([101, 500, 5_000, 100_000])
  opening, closing, inside = draw.choice([(b"[", b"]", b""), (b'{"a":', b"}", b"1"), (b'[{"a":', b"}]",
                                                                                      b"1")])
  whole = draw.random() < 0.5
  body = opening * depth + inside + (closing * depth if whole else b"")
  return Attack("", (request(draw.choice(ROUTES), b'{"prompt": ' + body + b"}"),))


def strange_numbers(draw):
  value = draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "1" + "0" * 5_000, "-" + "9" * 400,
                       "01"])
  field = draw.choice(["temperature", "max_tokens", "seed", "top_p", "prompt", "n", "unknown"])
  body = b'{"prompt": "x", "%s": %s}' % (field.encode(), value.encode())
  return Attack("", (request(draw.choice(ROUTES), body.replace(b'"prompt": "x", ', b"", field == "prompt")),))


def half_characters(draw):
  half = draw.choice(["\\ud800", "\\udfff", "x\\ud83d", "\\ude00\\ud83d"])
  path = draw.choice([TEXT, CHAT, RESPONSES, "/tokenize"])
  text = json.dumps(base(path)).replace("hi", half)
  return Attack("", (request(path, text.encode()),))


def names_twice(draw):
  path = draw.choice(ROUTES)
  text = json.dumps(base(path))
  return Attack("", (request(path, f"{text[:-1]}, {text[1:]}".encode()),))


# ------------------------------------------------------------------------------------------------- fields


WRONG = [None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**70, -(2**70), "", "x", "\u0000", [], [None], ["x"],
         [[]], [1, "x"], {}, {"a": 1}, [{}], [{"type": "function"}], "auto", 1e308, "a" * 5_000,
         {"type": "json_schema"}]
NUMBERS = ("n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
           "presence_penalty", "frequency_penalty", "seed", "logprobs", "top_logprobs", "best_of",
           "max_completion_tokens", "max_output_tokens")
OTHERS = ("prompt", "messages", "input", "model", "stop", "stop_token_ids", "logit_bias", "tools",
          "tool_choice", "parallel_tool_calls", "response_format", "text", "stream", "stream_options", "user",
          "conversation", "ignore_eos", "return_token_ids", "add_special_tokens", "chat_template_kwargs",
          "echo", "suffix", "store", "metadata", "instructions", "include", "tokens", "reasoning",
          "previous_response_id", "service_tier")


def wrong_values(draw):
  path = draw.choice(ROUTES)
  fields = base(path) | {name: draw.choice(WRONG) for name in draw.sample(NUMBERS + OTHERS, draw.randrange(1,
                                                                                                           5))}
  if fields.get("max_tokens") is None and fields.get("max_output_tokens") is None:
    fields |= {"max_output_tokens" if path == RESPONSES else "max_tokens": 2}
  return Attack("", (posted(path, fields),), BELOW_500)


def out_of_bounds(draw):
  field, values = draw.choice([
    ("n", [0, -1, 1.5, "1", 10**9, True]), ("max_tokens", [0, -5, 10**9, 2**80, "9", 1.5, []]),
    ("temperature", [-0.1, "hot", 1e7, [], -(2**90)]), ("top_p", [0, -1, 1.1, "x"]), ("top_k", [-2, 2**40,
                                                                                                1.5]),
    ("min_p", [-1, 1, 2]), ("repetition_penalty", [0, -1, 1e9]), ("presence_penalty", [3, -3, "x"]),
    ("frequency_penalty", [1e9, -2.1]), ("seed", [2**63, -(2**63) - 1, 1.0, "1"]), ("logprobs", [-1, 21,
                                                                                                 1e3]),
    ("stop", [[""], [1], {"a": 1}, ["x"] * 17, "x" * 1_001, 5]), ("stop_token_ids", [[-1], [2**40], ["x"],
                                                                                     [1.0], 5]),
    ("logit_bias", [{"x": 1}, {"-1": 1}, {"1e3": 1}, {"9" * 50: 1}, {"\u0663": 1}, {"1": 101}, {"1": "x"},
                    {"1": None}, {"": 1}, {"1": True}, {"99999999": 1}, [1], "x", {" 1": 1},
                    {str(2**31): 1}]),
    ("prompt", [[], [[]], [-1], [10**9], [2**70], [1.5], [True], ["x", 1], [None], {}, 7, [["x"]], [[1], "x",
                                                                                                    []]]),
    ("conversation", ["", "../../etc/passwd", "a/b", "a\\b", "\u0000", "x" * 129, "ä", ".." * 65,
                      {"id": "a/../b"}, {"id": 1}, {}, [], 7, "a b", "%2e%2e%2f", "a\nb", {"id": "a",
                                                                                           "more": 1}]),
    ("model", ["none", "../run", "", 7, "x" * 9_000, [], {"a": 1}]), ("stream", ["yes", 1, []]),
    ("user", [1, [], {}]), ("unknown_field", [1, "x", {"a": []}]), ("echo", [True]), ("best_of", [0, 2,
                                                                                                   10**12]),
    ("stream_options", [[], {"include_usage": 1}, {"more": True}]), ("max_token", [1]), ("\ud7ff\uffff", [1]),
  ])  # fmt: skip
  value = draw.choice(values)
  # A field that is null counts as absent, if its name is known.
  return Attack("", (posted(TEXT, base(TEXT) | {field: value}),))


def strange_messages(draw):
  message = draw.choice([
    {}, {"role": "user"}, {"role": "root", "content": "x"}, {"role": ["user"], "content": "x"},
    {"content": "x"}, {"role": "user", "content": 1},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    {"role": "user", "content": [{"type": "text"}]}, {"role": "user", "content": [[]]}, [], "x", None, 1,
    {"role": "user", "content": "x", "weight": 7}, {"role": "user", "content": "x", "more": {"a": 1}},
    {"role": "user", "content": "\ufdd0"}, {"from": "human", "value": 1}, {"role": "user",
                                                                           "content": {"a": "b"}},
    {"role": "assistant", "content": "", "tool_calls": [1]}, {"role": "assistant", "tool_calls": "x"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": 1, "arguments": "{"}}]},
    {"role": "assistant", "function_call": {"name": "f", "arguments": []}, "tool_calls": []},
  ])  # fmt: skip
  if draw.random() < 0.5:
    messages = draw.choice([[message], [*base(CHAT)["messages"], message]])
    return Attack("", (posted(CHAT, base(CHAT) | {"messages": messages}),))
  items = draw.choice([[message], [{"type": "x"}, message]])
  return Attack("", (posted(RESPONSES, base(RESPONSES) | {"input": items}),))


def strange_template_values(draw):
  name = draw.choice(["messages", "tools", "add_generation_prompt", "tokenizer", "self", "written", "asked",
                      "answer", "then", "values", "template", "role", "loop", "range", "namespace",
                      "raise_exception", "content", "bos_token", "__class__", "cycler", "", " ", "a b",
                      "\u0000"])
  value = draw.choice(WRONG)
  return Attack("", (posted(draw.choice([CHAT, "/tokenize"]),
                            base(CHAT) | {"chat_template_kwargs": {name: value}}),), BELOW_500)


def strange_schemas(draw):
  nested = {"type": "string"}
  for _ in range(draw.randrange(1, 40)):
    nested = {"type": "array", "items": nested}
  schema = draw.choice([
    {"type": "nothing"}, {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"$ref": "http://localhost/x.json"},
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": "("}, {"type": "string", "minLength": 10**9}, {"type": "array",
                                                                                 "minItems": 10**9},
    {"type": "integer", "minimum": 10**30, "maximum": 1}, {"enum": []}, {"enum": ["x" * 40_000]},
    {"allOf": [False]}, {"anyOf": [{"$ref": "#"}] * 50}, {"type": "object", "required": ["x" * 3_000]},
    {"const": {"a": [None]}}, nested, {"type": "object",
                                       "properties": {f"p{n}": {"type": "string"} for n in range(300)}},
    {"not": {}}, {"type": 7}, {"enum": list(range(3_000))}, {"type": "string", "format": "nothing"},
    {"multipleOf": 0, "type": "number"}, {"type": "string", "pattern": "(a|aa)*" * 200 + "$"},
    {"uniqueItems": True, "type": "array"}, {},
  ])  # fmt: skip
  form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
  return Attack("", (posted(draw.choice([TEXT, CHAT]), base(TEXT) | {"response_format": form}
                            if draw.random() < 0.5 else base(CHAT) | {"response_format": form}),), BELOW_500)


def strange_tools(draw):
  function = draw.choice([{}, {"name": 1}, {"name": "f", "parameters": []}, {"name": "f", "more": 1},
                          {"name": "f"}, {"name": "\n%json {}", "parameters": {"type": "object"}},
                          {"name": "f" * 3_000}, {"name": "f", "parameters": {"$ref": "#"}}, {"name": ""},
                          {"name": "f\u0000"}])
  tool = draw.choice([{"type": "function", "function": function}, {"type": "web"}, {"function": function}, 1,
                      []])
  choice = draw.choice(["auto", "required", "none", "f", 1, [], {"type": "function",
                                                                 "function": {"name": "f"}}, {},
                        {"type": "function", "function": {}}])
  fields = base(CHAT) | {"tools": [tool] * draw.choice([1, 1, 2, 200]), "tool_choice": choice}
  return Attack("", (posted(CHAT, fields),), BELOW_500)


def wrong_methods(draw):
  path = draw.choice([*ROUTES, "/v1/models", "/health", "/metrics", "/", "/v1/conversations/x"])
  method = draw.choice(["PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X" * 50, "post", "G3T"])
  return Attack("", (request(path, b"{}", method=method),))


def wrong_paths(draw):
  path = draw.choice(["/nothing", "/../../etc/passwd", "//", "/v1", "/v1/", "/%00", "/%ff%fe",
                      "/page/../page.js", "/v1/models/none", "/v1/models/%2e%2e%2f", "/tokenize/", "/docs",
                      "/openapi.json", "/v1/conversations/..%2fx", "/v1/conversations/%00",
                      "/v1/conversations/" + "x" * 200, "/v1/conversations/nobody", "http://x/y", "*",
                      "/v1/conversations/\u00e4".encode().decode("latin-1"), "/a" * 900, "/" + "a" * 40_000,
                      "/" + "a" * 200_000, "/?" + "a=b&" * 2_000 + "x/"])
  if path.startswith("/?"):
    path = "/nothing" + path[1:]
  method = draw.choice(["GET", "POST", "DELETE"])
  return Attack("", (request(path, b"", method=method),))


def wrong_types(draw):
  kind = draw.choice(["text/plain", "", "application/x-www-form-urlencoded",
                      "multipart/form-data; boundary=x", "application/json; charset=latin-1",
                      "application/jsonx", "json", "\x7f", "application/json, text/x"])
  extra = draw.choice([(), ("Content-Encoding: gzip",), ("Content-Encoding: br, gzip",)])
  kind = "application/json" if extra and draw.random() < 0.5 else kind
  return Attack("", (request(draw.choice(ROUTES), b'{"prompt": "x"}', *extra, kind=kind),))


def huge_headers(draw):
  size = draw.choice([50_000, 90_000, 1_000_000])
  lines = draw.choice([["X: " + "a" * size], [f"X{n}: {'b' * 90}" for n in range(size // 99)],
                       ["X" * size + ": a"], ["Cookie: " + "a=b; " * (size // 6)]])
  whole = request("/health", b"", *lines, method="GET")
  size = draw.choice([8_000, len(whole)])
  return Attack("", tuple(whole[at:at + size] for at in range(0, len(whole), size)))


def loading(draw):
  path = draw.choice(["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load_weights"])
  return Attack("", (posted(path, draw.choice([{}, {"lora_name": 1}, {"lora_path": "../../etc"}])),))


def other_hosts(draw):
  host = draw.choice(["evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost.evil:80", "\x00",
                      "a" * 900, "@"])
  return Attack("", (request(draw.choice(["/v1/models", *ROUTES]), b"{}", host=host, method="POST"),))


# --------------------------------------------------------------------------------------------- connections


def no_http(draw):
  texts = [b"\x16\x03\x01\x02\x00\x01\x00", b"nonsense\r\n\r\n", b"GET /\r\n\r\n",
           b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
           b"GET / HTTP/1.1\r\n\r\n", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
           b"GET / HTTP/1.1\nHost x\n\n",
           b"SSH-2.0-x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
           b"GET / HTTP/1.1\r\nHost: x\r\nA\x00: b\r\n\r\n", b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
           b"\r\n\r\n\x00\r\n\r\n", draw.randbytes(50) + b"\r\n\r\n",
           "GET /ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
           b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n"]  # fmt: skip
  return Attack("", (draw.choice(texts),))


def old_http(draw):
  texts = [b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\nHost: x\n\n",
           b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"]
  return Attack("", (draw.choice(texts),), BELOW_500)


def strange_lengths(draw):
  header = draw.choice(["Content-Length: -1", "Content-Length: x", "Content-Length: 1, 2",
                        "Content-Length: +5", "Content-Length: 99999999999999999999999",
                        "Content-Length: 0x10", "Transfer-Encoding: gzip",
                        "Content-Length: 5\r\nContent-Length: 6", "Transfer-Encoding: chunked, gzip",
                        "Content-Length: 99999999999"])
  return Attack("", (head(draw.choice(ROUTES), "Content-Type: application/json", header) + b"{}",))


def strange_chunks(draw):
  chunks = draw.choice([b"zz\r\n", b"-1\r\n{}\r\n", b"2\r\n{}x\r\n0\r\n\r\n", b"ffffffffffffffffffffffff\r\n",
                        b"0x2\r\n{}", b"2\r\n{}\r\n0\r\n\r\n", b"1;" + b"a" * 70_000 + b"\r\n", b"\r\n\r\n",
                        b"2\r\n{}\r\n0\r\nX" + b"y" * 70_000,
                        b"1\r\n{\r\n" * 500 + b"0\r\n\r\n"])  # fmt: skip
  path = draw.choice([*ROUTES, "/nothing"])
  kind = draw.choice(["application/json", "text/plain"])
  return Attack("", (head(path, f"Content-Type: {kind}", "Transfer-Encoding: chunked"), chunks))


def pipelined(draw):
  count = draw.randrange(2, 9)
  parts = [draw.choice([posted(TEXT, {"unknown": 1}), request("/nothing", b"", method="GET"),
                        request("/v1/models/none", b"", method="GET"), request(TEXT, b"{"),
                        request("/tokenize", b"{}", method="PUT")]) for _ in range(count)]
  whole = b"".join(parts)
  cut = draw.randrange(1, len(whole))
  return Attack("", draw.choice([(whole,), (whole[:cut], 0.01, whole[cut:])]), answers=count)


def too_large(draw):
  size = draw.choice([2**20 + 1, 2**20 + 2**18])  # Beyond what the servers of these tests take.
  body = b'{"prompt": "' + b"a" * size + b'"}'
  if draw.random() < 0.5:
    return Attack("", (request(draw.choice(ROUTES), body),))
  opened = head(TEXT, "Content-Type: application/json", "Transfer-Encoding: chunked")
  return Attack("", (opened + b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"))


def unread_body(draw):
  body = draw.randbytes(draw.choice([10, 70_000, 300_000]))
  return Attack("", (request(draw.choice(["/nothing", "/health", "/v1/models"]), body),))


def more_than_said(draw):
  return Attack("", (posted(TEXT, {"unknown": 1}) + draw.randbytes(draw.randrange(1, 90)) + b"\r\n\r\n",))


def gone_at_once(draw):
  whole = posted(draw.choice(ROUTES), {"prompt": "hi", "max_tokens": 4, "stream": draw.random() < 0.5})
  return Attack("", (whole[:draw.randrange(len(whole) + 1)],), NOTHING, answers=0)


def half_closed(draw):
  whole = posted(draw.choice(ROUTES), {"prompt": "hi", "max_tokens": 2})
  return Attack("", (whole[:draw.randrange(1, len(whole) + 1)],), NOTHING, closes=True)


def upgrades(draw):
  headers = draw.choice([("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"),
                         ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: x"),
                         ("Expect: 200-maybe",), ("Expect: 100-continue",)])
  return Attack("", (request(draw.choice(["/nothing", "/tokenize"]), b'{"unknown": 1}', *headers),))


# ----------------------------------------------------------------------------------------------- slow ones


def slow_headers(draw):
  parts: list[bytes | float] = []
  for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 3:
    parts += [bytes([byte]), 0.2]
  return Attack("", tuple(parts) if draw.random() < 0.5 else (b"POST /tok",))


def slow_body(draw):
  whole = posted(draw.choice(ROUTES), {"prompt": "hello " * 9})
  at = whole.index(b"\r\n\r\n") + 4
  parts: list[bytes | float] = [whole[:at]]
  for byte in whole[at:at + 40]:
    parts += [bytes([byte]), 0.1]
  return Attack("", tuple(parts))


def slow_unread_body(draw):
  begun = head(draw.choice(["/nothing", "/health"]), "Content-Length: 99999")
  return Attack("", (begun, *[b"x", 0.1] * 20))


QUICK = (no_json, no_utf8, deep_json, strange_numbers, half_characters, names_twice, wrong_values,
         wrong_values, out_of_bounds, out_of_bounds, strange_messages, strange_template_values,
         strange_schemas, strange_tools, wrong_methods, wrong_paths, wrong_types, huge_headers, loading,
         other_hosts, no_http, old_http, strange_lengths, strange_chunks, pipelined, too_large, unread_body,
         more_than_said, gone_at_once, half_closed, upgrades)
SLOW = (slow_headers, slow_body, slow_unread_body)
