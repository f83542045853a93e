"""The real client of OpenAI through the proxy: replies are passed on as they are, and recorded."""
import asyncio
import contextlib
import json
import socket

import pytest

from atlas_jax.data.traces import served_tokens
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime import proxy_sessions
from atlas_jax.runtime.proxy import Proxy, ProxySettings, application
from atlas_jax.runtime.proxy_sessions import ProxySessions
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.store import RuntimeStore, StoreSettings

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
KEY = "sk-planted-key-0123456789abcdef"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {
  "type": "object", "properties": {"a": {"type": "integer"}}}}}]


def ids(text):
  return {"token_ids": list(text.encode()), "sampler_logprobs": [-0.5] * len(text),
          "full_logprobs": [-0.6] * len(text)}


def head(kind):
  return {"id": "x", "object": kind, "created": 1, "model": "m"}


def upstream(owner):
  """A scripted server: what it is told decides how it answers."""
  from starlette.applications import Starlette
  from starlette.responses import JSONResponse, StreamingResponse
  from starlette.routing import Route

  async def models(request):
    return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner}]})

  async def chat(request):
    body = await request.json()
    said = body["messages"][-1]["content"]
    extra = ids(f"echo {said}") if body.get("return_token_ids") else {}
    prompt = {"prompt_token_ids": [1, 2]} if extra else {}
    if said == "refuse":
      return JSONResponse({"error": {"message": "slow down", "type": "rate"}}, 429, {"retry-after": "7"})
    if body.get("stream"):
      async def parts():
        opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        yield f"data: {json.dumps({**head('chat.completion.chunk'), 'choices': [opening], **prompt})}\n\n"
        for letter in f"echo {said}":
          one = {"index": 0, "delta": {"content": letter}, "finish_reason": None,
                 **(ids(letter) if extra else {})}
          yield f"data: {json.dumps({**head('chat.completion.chunk'), 'choices': [one]})}\n\n"
          if said == "break" and letter == "b":
            raise OSError("cut")
          if said == "hang" and letter == "h":
            await asyncio.sleep(60)
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield f"data: {json.dumps({**head('chat.completion.chunk'), 'choices': [last]})}\n\ndata: [DONE]\n\n"
      return StreamingResponse(parts(), media_type="text/event-stream")
    message = {"role": "assistant", "content": f"echo {said}"}
    if body.get("tools") and body["messages"][-1]["role"] == "user":
      call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
      message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **extra}
    return JSONResponse({**head("chat.completion"), "choices": [choice], **prompt,
                         "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})

  async def texts(request):
    body = await request.json()
    choice = {"index": 0, "text": "done", "finish_reason": "stop", "logprobs": None}
    if body.get("return_token_ids"):
      choice |= {**ids("done"), "prompt_token_ids": [5]}
    return JSONResponse({**head("text_completion"), "choices": [choice]})

  return Starlette(routes=[Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"]),
                           Route("/v1/completions", texts, methods=["POST"])])


@contextlib.asynccontextmanager
async def serving(app):
  listening = socket.socket()
  listening.bind(("127.0.0.1", 0))
  server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
  task = asyncio.create_task(server.serve(sockets=[listening]))
  try:
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
  finally:
    server.should_exit = True
    server.force_exit = True
    await task


def through(tmp_path, work, *, owner="atlas_jax", base=None, **settings):
  """Runs `work(client)` through a proxy; returns its traces by their task, oldest first."""
  async def main():
    url = f"sqlite:///{tmp_path}/store.db"
    store = RuntimeStore(StoreSettings(url=url, spool=str(tmp_path / "spool")))
    await store.open(create=True)
    async with serving(upstream(owner)) as place:
      chosen = ProxySettings(upstream=base or place, **settings)
      proxy = Proxy(chosen, ProxySessions(store, redactor=Redactor(known=(KEY,))))
      async with serving(application(proxy, chosen)) as address:
        async with openai.AsyncOpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
          await asyncio.wait_for(work(client), 30)
      await proxy.close()
      assert proxy.sessions.unrecorded == 0
    await store.close()
    with open_store(url) as opened:
      query = SessionQuery(review_statuses=None)
      return [Trace.from_json(one.record()) for page in opened.pages(query) for one in page]

  return asyncio.run(main())


def user(text):
  return {"role": "user", "content": text}


def test_a_conversation_with_tools_is_one_session_with_its_ids(tmp_path):
  first = [user("two and three")]

  async def work(client):
    assert (await client.models.list()).data[0].id == "m"
    one = await client.chat.completions.create(model="m", messages=first, tools=TOOLS)
    call = one.choices[0].message.tool_calls[0]
    assert (call.function.name, one.usage.prompt_tokens) == ("add", 3)
    more = [*first, one.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    two = await client.chat.completions.create(model="m", messages=more, tools=TOOLS, temperature=0.5)
    assert two.choices[0].message.content == "echo 5"
    await client.completions.create(model="m", prompt="alone")

  chat, text = through(tmp_path, work)
  assert (chat.task, chat.final_answer, chat.status, chat.review_status) == (
    "two and three", "echo 5", "succeeded", "pending")
  asked = proxy_sessions.requests(chat)
  assert asked[0] == {"messages": first, "model": "m", "tools": TOOLS}
  assert asked[1]["messages"][:1] == first and len(asked[1]["messages"]) == 3
  assert asked[1]["temperature"] == 0.5
  assert len(chat.steps[1].data["exchange"]["messages"]) == 2  # The others stand in the first exchange.
  assert chat.data["tokens"]["student"] == {"prompt": 6, "completion": 4, "calls": 2}
  assert (text.task, text.final_answer) == ("alone", "done")
  rows = [row for trace in (chat, text) for row in served_tokens.served_rows(trace)]
  assert [bytes(row.token_ids).decode() for row in rows] == ["echo two and three", "echo 5", "done"]
  assert [row.prompt_ids for row in rows] == [(1, 2), (1, 2), (5,)]
  assert KEY not in (tmp_path / "store.db").read_bytes().decode(errors="ignore")


def test_streams_are_passed_on_and_put_together_also_where_they_break_off(tmp_path):
  async def streamed(client, text):
    found = ""
    async for chunk in await client.chat.completions.create(model="m", messages=[user(text)], stream=True):
      found += (chunk.choices[0].delta.content or "") if chunk.choices else ""
      if text == "hang" and found.endswith("h") and len(found) > 4:
        return found  # The client goes away.
    return found

  async def work(client):
    assert await streamed(client, "hello") == "echo hello"
    with pytest.raises(openai.APIError):
      await streamed(client, "break")
    stream = await client.chat.completions.create(model="m", messages=[user("hang")], stream=True)
    async for chunk in stream:
      if chunk.choices[0].delta.content == "h" and chunk.choices[0].index == 0:
        break
    await stream.close()
    with pytest.raises(openai.RateLimitError) as refused:
      await client.chat.completions.create(model="m", messages=[user("refuse")])
    assert refused.value.response.headers["retry-after"] == "7" and "slow down" in str(refused.value)

  found = {trace.task: trace for trace in through(tmp_path, work)}
  assert {task: trace.status for task, trace in found.items()} == {
    "hello": "succeeded", "break": "failed", "hang": "failed", "refuse": "failed"}
  [row] = served_tokens.served_rows(found["hello"])
  assert bytes(row.token_ids).decode() == "echo hello" == found["hello"].final_answer
  exchange = {task: trace.steps[0].data["exchange"] for task, trace in found.items()}
  assert exchange["break"]["problem"].startswith("the upstream broke off")
  assert exchange["break"]["response"]["choices"][0]["message"]["content"] == "echo b"
  assert exchange["hang"]["problem"] == "the client went away"
  assert exchange["refuse"]["response"]["error"]["message"] == "slow down"
  for task in ("break", "hang", "refuse"):
    with pytest.raises(served_tokens.NoServerTokens, match="has no token ids of the server"):
      served_tokens.served_rows(found[task])


def test_fifty_at_once_are_fifty_sessions_and_another_server_tells_no_ids(tmp_path):
  async def work(client):
    replies = await asyncio.gather(*(
      client.chat.completions.create(model="m", messages=[user(f"n{number}")]) for number in range(50)))
    assert [one.choices[0].message.content for one in replies] == [f"echo n{number}" for number in range(50)]
    for text in ("a", f"my key is {KEY}"):
      await client.chat.completions.create(model="m", messages=[user(text)],
                                           extra_headers={"x-atlas-session": "mine"})

  found = through(tmp_path, work, owner="another")
  assert len(found) == 51 and sum(len(one.steps) for one in found) == 52
  assert {one.session_metadata["token_source"] for one in found} == {None}
  with pytest.raises(served_tokens.NoServerTokens):
    served_tokens.served_rows(found[0])
  assert KEY not in (tmp_path / "store.db").read_bytes().decode(errors="ignore")


def test_an_upstream_that_is_down_is_said_and_a_token_is_asked_for(tmp_path):
  async def work(client):
    with pytest.raises(openai.AuthenticationError):
      await client.models.list()
    client.api_key = "token-of-the-proxy"
    with pytest.raises(openai.InternalServerError, match="the upstream does not answer"):
      await client.chat.completions.create(model="m", messages=[user("x")])
    with pytest.raises(openai.APIStatusError) as large:
      await client.chat.completions.create(model="m", messages=[user("x" * 2**20)])
    assert large.value.status_code == 413

  [trace] = through(tmp_path, work, base="http://127.0.0.1:9/v1", host="0.0.0.0", token="token-of-the-proxy")
  assert trace.status == "failed" and trace.steps[0].data["exchange"]["status"] is None


@pytest.mark.parametrize("field, value", [("host", "0.0.0.0"), ("upstream", "x"), ("token_ids", "yes"),
                                          ("idle_s", 0)])
def test_settings_that_cannot_be_are_named(field, value):
  with pytest.raises(ValueError, match=f"proxy.{field}"):
    ProxySettings(**{field: value})
