"""Conversations: kept as the ids that were read and written, over restarts, the oldest forgotten."""
import pytest

from atlas_jax.language.decoding.requests import EndEvent
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.conversations import CHAT, TEXT, Conversation, Conversations
from tests.language.serve import scripted


def end(reason):
  return EndEvent(0, reason, "", None, None, 0, 2, 0, 3)


def test_a_conversation_keeps_what_was_read_but_not_the_end_of_a_turn():
  begun = Conversation("c")
  stopped = begun.after(TEXT, (1, 2), (3, 4, 260), end("stop_token"), "ab", ())
  assert stopped.tokens == (1, 2, 3, 4)
  assert begun.after(TEXT, (1,), (3,), end("length"), "a", ()).tokens == (1, 3)
  assert begun.after(TEXT, (1,), (3,), end("stop_string"), "", ()).written is None
  with pytest.raises(ApiError, match="one of texts"):
    stopped.need_kind(CHAT)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_oldest_are_forgotten_and_one_can_be_deleted(on_disk, tmp_path):
  kept = Conversations(tmp_path if on_disk else None, 2)
  for name in ("a", "b", "c"):
    kept.keep("t", Conversation(name, TEXT, (1,)))
  for tenant, name in (("t", "a"), ("other", "b")):
    with pytest.raises(ApiError) as caught:
      kept.find(tenant, name)
    assert caught.value.status == 404
  kept.forget("t", "b")
  with pytest.raises(ApiError):
    kept.find("t", "b")
  assert kept.find("t", "c").tokens == (1,)


def test_a_damaged_file_is_told_and_not_taken_for_an_empty_conversation(tmp_path):
  kept = Conversations(tmp_path, 2)
  kept.keep("t", Conversation("a", TEXT, (1,)))
  (file,) = tmp_path.glob("*.json")
  assert "a" not in file.stem.split(".")
  file.write_text(file.read_text().replace("[1]", "[2]"))
  with pytest.raises(ApiError) as caught:
    kept.find("t", "a")
  assert caught.value.status == 500
  kept.forget("t", "a")
  with pytest.raises(ApiError) as caught:
    kept.find("t", "a")
  assert caught.value.status == 404


def test_a_text_goes_on_over_a_restart(tmp_path):
  made = scripted.service(lambda text: "ab", folder=tmp_path, template=None)
  first = scripted.Client(made).post("/v1/completions", prompt="x", conversation={"id": "c"})
  assert first["conversation"] == {"id": "c"}
  again = scripted.service(lambda text: "cd", folder=tmp_path, template=None)
  client = scripted.Client(again)
  client.post("/v1/completions", prompt="y", conversation="c")
  assert again.scheduler.asked[0].prompt == (256, *b"xaby")
  assert client.ask("/v1/conversations/c").json()["tokens"] == [256, *b"xabycd"]
  assert client.ask("/v1/conversations/c", method="DELETE").json()["deleted"]
  client.refused("/v1/conversations/c", status=404)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_goes_on_from_the_very_ids_that_were_written(stream, tmp_path):
  made = scripted.service(lambda text: "hello", folder=tmp_path)
  client = scripted.Client(made)
  for word in ("one", "two"):
    body = {"messages": [{"role": "user", "content": word}], "conversation": "c"}
    if stream:
      assert client.stream("/v1/chat/completions", **body)[-1]["conversation"] == {"id": "c"}
    else:
      last = client.post("/v1/chat/completions", **body)
      assert (last["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == (word == "two")
  first, second = (request.prompt for request in made.scheduler.asked)
  assert second[:len(first) + 5] == (*first, *b"hello")
  said = [("user", "one"), ("assistant", "hello"), ("user", "two")]
  assert second == made.text.chat([{"role": role, "content": word} for role, word in said], {})


def test_ids_that_are_not_the_usual_ones_of_their_text_are_kept():
  # The template shows the answer's text; the conversation has ids that another encoder would not choose.
  made = scripted.service()
  said = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "A"})
  kept = Conversation("c", CHAT, (1, 2, 3), said, "A")
  made.conversations.keep("", kept)
  client = scripted.Client(made)
  client.post("/v1/chat/completions", messages=[{"role": "user", "content": "r"}], conversation="c")
  assert made.scheduler.asked[0].prompt[:3] == (1, 2, 3)
  # Behind a stop string the ids say more than the text, so the chat is shown anew.
  kept.written = None
  made.conversations.keep("", kept)
  client.post("/v1/chat/completions", messages=[{"role": "user", "content": "r"}], conversation="c")
  assert made.scheduler.asked[1].prompt[:3] != (1, 2, 3)


def test_one_request_at_a_time_and_names_are_bounded():
  made = scripted.service()
  client = scripted.Client(made)
  with made.conversations.claimed("", "c"):
    error = client.refused("/v1/completions", {"prompt": "x", "conversation": "c"}, status=409)
    assert error["param"] == "conversation"
  client.post("/v1/completions", prompt="x", conversation="c")
  for name in ("", "a/b", "x" * 129, 3, {"id": "a", "more": 1}):
    client.refused("/v1/completions", {"prompt": "x", "conversation": name})
  client.refused("/v1/completions", {"prompt": ["x", "y"], "conversation": "d"})
  client.refused("/v1/completions", {"prompt": "x", "n": 2, "conversation": "d"})
  chat = {"messages": [{"role": "user", "content": "x"}], "conversation": "c"}
  assert "one of texts" in client.refused("/v1/chat/completions", chat)["message"]


def test_a_branch_goes_on_by_itself_and_is_of_one_tenant(tmp_path):
  made = scripted.service(lambda text: "ab", folder=tmp_path, template=None)
  client = scripted.Client(made)
  client.post("/v1/completions", prompt="x", conversation="c")
  found = client.post("/v1/conversations/c/branch", id="d")
  assert found["parent"] == "c" and found["token_count"] == 4
  client.post("/v1/completions", prompt="y", conversation="d")
  tokens = {name: client.ask(f"/v1/conversations/{name}").json()["tokens"] for name in "cd"}
  assert tokens == {"c": [256, *b"xab"], "d": [256, *b"xabyab"]}
  client.ask("/v1/conversations/c", method="DELETE")
  assert client.ask("/v1/conversations/d").status_code == 200
  client.refused("/v1/conversations/c/branch", {"id": "e"}, status=404)
  assert client.refused("/v1/conversations/d/branch", {"id": "d"}, status=409)["code"] == "conversation_taken"
  client.refused("/v1/conversations/d/branch", {"id": "e", "more": 1})
  client.refused("/v1/conversations/d/branch", {"id": "/"})
  with pytest.raises(ApiError):
    made.conversations.branch("other", "d", "e")
