"""A conversation in a terminal, by the same ways as over HTTP: requests are read, drawn and kept alike."""
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from atlas_jax.language.decoding.requests import EndEvent, Stream
from atlas_jax.language.serve import chat_completions, conversations, served_run, text_completions
from atlas_jax.language.serve.answering import RequestLimits
from atlas_jax.language.serve.api_call import ReadContext
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.constrained import GrammarTokens
from atlas_jax.language.serve.conversations import Conversation
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.language.serve.memory_trace import MemoryTrace
from atlas_jax.language.serve.served_run import ServedRun
from atlas_jax.language.serve.served_text import ServedText

HELP = """/new               begins another conversation
/set FIELD VALUE   sets a field of requests, such as temperature, top_p, seed, max_tokens
/set FIELD         unsets it
/memory            shows what the memory did at each token of the last answer
/help              shows this
/quit              ends, and so does the end of the input"""
LEVELS = " ▁▂▃▄▅▆▇█"
WIDTH = 64  # Characters of a line of the strip.
NAME = "terminal"


def run(config, workdir, lines: Iterator[str], out: TextIO) -> None:
  """Talks with a run until the input ends.

  Args:
    config: of the run; resolved.
    workdir: of the run.
    lines: what the user types.
    out: where answers go.

  Raises:
    ValueError: see `served_run.opened`.
  """
  with served_run.opened(config, workdir, mode="chat") as served:
    limits = served_run.request_limits(config, served.text)
    print(f"{served.name}, step {served.step}; /help tells what else there is", file=out, flush=True)
    talk(TerminalChat(served, limits), lines, out)


def talk(chat: "TerminalChat", lines: Iterator[str], out: TextIO) -> None:
  """Answers line after line; an interruption ends an answer, and between answers the conversation."""
  while True:
    print("> ", end="", file=out, flush=True)
    try:
      line = next(lines, None)
    except KeyboardInterrupt:
      line = None
    if line is None or line.strip() == "/quit":
      print(file=out, flush=True)
      return
    try:
      for piece in chat.answer(line.rstrip("\n")):
        print(piece, end="", file=out, flush=True)
    except KeyboardInterrupt:
      chat.interrupt()
      print("\n(interrupted; the conversation stands where it stood)", file=out, flush=True)
    except (ApiError, ValueError) as error:
      print(f"({' '.join(str(error).split())})", file=out, flush=True)


class TerminalChat:
  """One conversation with a run; each line is a request, or a command."""

  def __init__(self, served: ServedRun, limits: RequestLimits):
    """Begins a conversation."""
    self._served = served
    self._limits = limits
    self._fields: dict[str, Any] = {}
    self._conversation = Conversation(NAME)
    self._stream: Stream | None = None
    self._last: tuple[int, ...] = ()  # Ids of the last request and its answer.

  def answer(self, line: str) -> Iterator[str]:
    """Yields what a line is answered, piece by piece.

    Raises:
      ApiError: for a request that cannot be, such as one with a field that is unknown.
    """
    word, _, rest = line.partition(" ")
    commands: dict[str, Callable[[str], Iterator[str]]] = {
        "/new": self._new, "/set": self._set, "/memory": self._memory, "/help": _help}
    if word in commands:
      yield from commands[word](rest.strip())
    elif line:
      yield from self._say(line)

  def interrupt(self) -> None:
    """Ends the answer that is being written."""
    if self._stream is not None:
      self._served.scheduler.cancel(self._stream)
      self._stream = None

  def _say(self, line: str) -> Iterator[str]:
    text = self._served.text
    given = dict(self._fields)
    model = str(given.pop("model", self._served.name))
    if model not in self._served.scheduler.models():
      raise ValueError(f"there is no model {model!r}; there are {', '.join(self._served.scheduler.models())}")
    context = ReadContext(model, text, self._limits.of_one, NAME, self._conversation,
                          lambda: GrammarTokens(text))
    if text.template is None:
      body = {"max_tokens": min(200, self._limits.of_one.max_tokens), "prompt": line}
      read = text_completions.read
    else:
      body = {"messages": [{"role": "user", "content": line}]}
      read = chat_completions.read
    call = read(JsonFields({**body, **given}), context)
    if len(call.requests) > 1 or call.requests[0].sampling.n > 1:
      raise ValueError("one answer at a time; unset n")
    began_s = time.monotonic()
    self._stream = self._served.scheduler.submit(call.requests[0])
    drawn: list[int] = []
    written = ""
    first_s = began_s
    end: EndEvent | None = None
    for event in self._stream:
      written += event.text
      yield event.text
      if isinstance(event, EndEvent):
        end = event
      else:
        first_s = time.monotonic() if not drawn else first_s
        drawn.append(event.token)
    self._stream = None
    assert end is not None  # A stream has one for each completion.
    if end.error is not None:
      raise ValueError(f"the answer failed: {end.error}")
    messages = (*call.messages, {"role": "assistant", "content": written}) if call.messages else ()
    kind = conversations.CHAT if messages else conversations.TEXT
    prompt = call.requests[0].prompt
    self._conversation = self._conversation.after(kind, prompt, drawn, end, written, messages)
    self._last = (*prompt, *drawn)
    yield f"\n{self._figures(end, len(drawn), time.monotonic() - first_s)}\n"

  def _figures(self, end: EndEvent, drawn: int, seconds: float) -> str:
    """Returns a line about an answer."""
    parts = [f"{end.prompt_tokens} tokens read, {end.cached_tokens} of them from a kept state",
             f"{drawn} written"]
    if drawn > 1 and seconds > 0:
      parts.append(f"{(drawn - 1) / seconds:.1f} tokens/s")
    stats = self._served.scheduler.stats()
    if "state_bytes" in stats:
      parts.append(f"state of {stats['state_bytes'] / 2**10:.1f} KiB")
    return f"({end.reason}; {', '.join(parts)})"

  def _new(self, rest: str) -> Iterator[str]:
    del rest
    self._conversation = Conversation(NAME)
    self._last = ()
    yield "(another conversation)\n"

  def _set(self, rest: str) -> Iterator[str]:
    name, _, value = rest.partition(" ")
    if name and value:
      try:
        self._fields[name] = json.loads(value)
      except ValueError:
        self._fields[name] = value
    else:
      self._fields.pop(name, None)
    yield f"({json.dumps(self._fields)})\n"

  def _memory(self, rest: str) -> Iterator[str]:
    del rest
    if self._served.trace is None:
      yield "(the model has no memory that can be looked at)\n"
    elif not self._last:
      yield "(nothing has been said yet)\n"
    else:
      tokens = self._last[-self._limits.trace_tokens:]
      yield from strip(tokens, self._served.trace(tokens), self._served.text)


def _help(rest: str) -> Iterator[str]:
  del rest
  yield f"{HELP}\n"


def strip(tokens: tuple[int, ...], trace: MemoryTrace, text: ServedText) -> Iterator[str]:
  """Yields lines of a text, and under each character bars of gate, write rate and surprise."""
  words = [text.token_text(token).replace("\n", "⏎").replace("\t", "→") or "·" for token in tokens]
  rows = {field.removesuffix("_T"): "".join(level * len(word) for level, word in zip(_levels(value_T), words))
          for field, value_T in trace._asdict().items()}
  whole = "".join(words)
  for field, value_T in trace._asdict().items():
    yield f"({field.removesuffix('_T')}: {value_T.min():.3g} to {value_T.max():.3g})\n"
  for at in range(0, len(whole), WIDTH):
    yield f"{'':12}{whole[at:at + WIDTH]}\n"
    for name, row in rows.items():
      yield f"{name:>11} {row[at:at + WIDTH]}\n"


def _levels(value_T) -> list[str]:
  """Returns a bar for each value, between the least and the largest."""
  low = float(value_T.min())
  width = float(value_T.max()) - low
  steps = len(LEVELS) - 1
  return [LEVELS[1 + round((steps - 1) * (float(value) - low) / width)] if width > 0 else LEVELS[1]
          for value in value_T]
