"""The student as an agent and the teacher as a model of the runtime, both answered in this process.

Sessions ask one at a time; what many of them ask within a moment is generated together.
"""
import asyncio
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.data.convention import in_format
from atlas_jax.rollout import teaching
from atlas_jax.rollout.chat_form import EndpointReply, ReplyTokens
from atlas_jax.runtime.agents.agent import AgentReply, AgentSession, CallTokens, Tool
from atlas_jax.runtime.chat_models import ModelError
from atlas_jax.workdir import SUMMARY
from experiments.adaptive_teacher.models import Writer
from experiments.closed_loop import config as settings

GATHER_S = 0.02  # Seconds for which questions are gathered.


class Together:
  """Answers texts that come one at a time, many at once."""

  def __init__(self, writer: Writer, *, max_tokens: int):
    """Takes a model, and the tokens of an answer, its end included."""
    self._writer = writer
    self._max_tokens = max_tokens
    self._waiting: list[tuple[str, asyncio.Future]] = []
    self._task: asyncio.Task | None = None

  async def write(self, text: str) -> str:
    """Returns the likeliest answer to a text."""
    future = asyncio.get_running_loop().create_future()
    self._waiting.append((text, future))
    if self._task is None or self._task.done():
      self._task = asyncio.create_task(self._answer())
    return await future

  async def _answer(self) -> None:
    while self._waiting:
      await asyncio.sleep(GATHER_S)
      taken, self._waiting = self._waiting, []
      try:
        written = await asyncio.to_thread(self._writer.write, [text for text, _ in taken],
                                          max_tokens=self._max_tokens)
      except Exception as error:  # Each session says what became of its own question.
        for _, future in taken:
          future.set_exception(RuntimeError(f"the model failed: {error}"))
        continue
      for (_, future), answer in zip(taken, written, strict=True):
        if not future.done():
          future.set_result(answer)


class StudentAgent:
  """The student at work: the question and the guidance behind it, messages of their own, become its text.

  Attributes:
    name: for the learning key.
    version: of its parameters.
    idempotent: it remembers nothing.
  """

  name = "sums"
  idempotent = True

  def __init__(self, writer: Writer, version: str):
    """Takes the model and its version."""
    self._model = Together(writer, max_tokens=settings.ANSWER_TOKENS)
    self.version = version

  async def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (),
                     session: AgentSession) -> AgentReply:
    """Returns its answer; see `Agent`."""
    del tools, session
    text = student_text(messages)
    answer = await self._model.write(text)
    return AgentReply(answer, tokens=CallTokens(len(text.encode()) + 1, len(answer.encode()) + 1))


def student_text(messages: Sequence[Mapping[str, Any]]) -> str:
  """Returns the text that the student was tuned on, of the messages of a session.

  It was tuned to obey one hint. Guidance goes before lessons, and of several lessons one is drawn.
  """
  question = next(one["content"] for one in messages if one.get("name") is None)
  guidance = [one["content"] for one in messages if one.get("name") == "guidance"]
  lessons = [line.removeprefix("- ") for one in messages if one.get("name") == "lessons"
             for line in one["content"].splitlines() if line.startswith("- ")]
  if lessons and not guidance:
    drawn = hashlib.sha256(question.encode()).digest()[0] % len(lessons)
    guidance = [lessons[drawn]]
  return in_format(settings.FORMATS, "guided" if guidance else "baseline", question, "".join(guidance[-1:]))


class TeacherModel:
  """The teacher at work; see `chat_models.ChatModel`."""

  def __init__(self, writer: Writer):
    """Takes the model."""
    self._model = Together(writer, max_tokens=settings.HINT_TOKENS)

  async def ask(self, messages: Sequence[Mapping[str, Any]], *, options: Any = None) -> EndpointReply:
    """Returns its hint, the likeliest one.

    Raises:
      ModelError: if JSON is asked for, which it has not learnt to write.
    """
    if getattr(options, "schema", None) is not None:
      raise ModelError("schema", "this teacher writes hints and no JSON")
    text = messages[0]["content"]
    hint = await self._model.write(text)
    return EndpointReply(hint, ReplyTokens(len(text.encode()) + 1, len(hint.encode()) + 1), {}, tries=1)


def templates() -> teaching.TemplateSet:
  """Returns the texts that the teacher is asked with, which are those of its training."""
  given = settings.get_config("stage=round").teacher
  return teaching.load(given.templates, given.formats.to_dict())


def version(workdir: pathlib.Path) -> str:
  """Returns a version of the newest parameters of a run: of the folder's name and its summary."""
  text = (workdir / SUMMARY).read_bytes()
  return hashlib.sha256(workdir.name.encode() + text).hexdigest()[:12]
