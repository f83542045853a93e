"""A conversation in a terminal: answers, commands, and errors that do not end it."""
import io

from atlas_jax.language.serve.answering import RequestLimits
from atlas_jax.language.serve.generation_fields import CompletionLimits
from atlas_jax.language.serve.served_run import ServedRun
from atlas_jax.language.serve.terminal import TerminalChat, talk
from tests.language.serve import scripted

LIMITS = RequestLimits(2**16, 1.0, 64, CompletionLimits(50, 8))


def spoken(*lines, script=lambda text: "ok", template=scripted.PLAIN, trace=scripted.traced):
  scheduler = scripted.ScriptedScheduler(script)
  served = ServedRun("base", 3, scheduler, scripted.text_of(template), trace)
  out = io.StringIO()
  talk(TerminalChat(served, LIMITS), iter(f"{line}\n" for line in lines), out)
  return out.getvalue(), scheduler.asked


def test_a_chat_goes_on_until_another_is_begun():
  told, asked = spoken("one", "two", "/new", "three")
  assert told.count("> ok") == 3
  assert asked[1].prompt[:len(asked[0].prompt) + 2] == (*asked[0].prompt, *b"ok")
  assert asked[1].prompt.count(260) == 3
  assert asked[2].prompt == scripted.text_of(scripted.PLAIN).chat([{"role": "user", "content": "three"}], {})
  assert "from a kept state" in told


def test_a_model_without_a_template_goes_on_from_the_text():
  _, asked = spoken("ab", "cd", template=None)
  assert asked[1].prompt == (256, *b"abokcd")


def test_fields_are_set_and_mistakes_are_told():
  told, asked = spoken("/set temperature 0.25", "/set seed 7", "x", "/set n 2", "x", "/set n", "/set frob 1",
                       "x", "/quit", "y")
  assert (asked[0].sampling.temperature, asked[0].seed) == (0.25, 7)
  assert len(asked) == 1
  assert "one completion at a time" in told
  assert "frob" in told
  told, asked = spoken("/set model adapter", "x", "/set model none", "y")
  assert [one.model for one in asked] == ["adapter"]
  assert "there is no model 'none'; there are base, adapter" in told


def test_the_memory_is_drawn_under_the_text():
  told, _ = spoken("/memory", "x", "/memory", template=None)
  assert "nothing has been said yet" in told
  assert "xok" in told
  assert "surprise" in told
  assert "█" in told
  assert "no memory" in spoken("/memory", trace=None)[0]
