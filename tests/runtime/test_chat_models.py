"""Functions as models: sync or async, replies checked, repaired once, and errors that name what is wrong."""
import asyncio

import pytest

from atlas_jax.rollout.chat_form import AskOptions, EndpointReply, ReplyTokens
from atlas_jax.runtime.chat_models import FunctionModel, ModelError
from tests.runtime.parts import Script

MESSAGES = [{"role": "user", "content": "2+2"}]
SCHEMA = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}}


def asked(function, **options):
  model = FunctionModel(function)
  return asyncio.run(model.ask(MESSAGES, options=AskOptions(**options))), model


def test_a_function_may_be_sync_or_async_and_may_count_its_tokens():
  assert asked(lambda messages: messages[0]["content"])[0].text == "2+2"
  reply, model = asked(Script(EndpointReply("4", ReplyTokens(3, 1), {})))
  assert (reply.text, reply.usage.prompt_tokens, model.calls) == ("4", 3, 1)


def test_a_reply_of_another_form_is_asked_for_once_more_and_all_tokens_count():
  first = EndpointReply("ok", ReplyTokens(3, 1), {})
  script = Script(first, first._replace(text='{"ok": true}'))
  reply, _ = asked(script, schema=SCHEMA)
  assert reply.data == {"ok": True} and (reply.tries, reply.usage) == (2, ReplyTokens(6, 2))
  assert script.asked[1][1] == {"role": "assistant", "content": "ok"}
  with pytest.raises(ModelError, match="also after one repair") as caught:
    asked(Script(first), schema=SCHEMA)
  assert (caught.value.kind, caught.value.tries, caught.value.usage) == ("schema", 2, ReplyTokens(6, 2))


@pytest.mark.parametrize("reply, said", [(7, "gave int"), (None, "gave NoneType"),
                                         (RuntimeError("boom"), "boom")])
def test_a_function_that_fails_is_an_error_of_the_model(reply, said):
  with pytest.raises(ModelError, match=said):
    asked(Script(reply))
