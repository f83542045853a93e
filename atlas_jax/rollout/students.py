"""Students: who answers questions for a teacher, with weights that stay as they are.

A student of one's own is a dotted module in config.teacher.sampler with make(config), which gives an object
with answer(asked, *, max_tokens, temperature, seed) -> `StudentReply` for each list of messages in `asked`.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from atlas_jax import modules
from atlas_jax.data import chats, stepped
from atlas_jax.data.problems import Problem
from atlas_jax.language import other_model
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.initial_model import InitialModel, merge_frozen
from atlas_jax.losses.token_logprobs import token_logprobs
from atlas_jax.models.language import read_completions
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.rollout import arrays
from atlas_jax.rollout.endpoint import ChatRequest, Endpoint, EndpointError, EndpointSettings
from atlas_jax.state import Trained

FROZEN = "student"  # The student's name among what is not trained.
Messages = Sequence[Mapping[str, Any]]


class StudentReply(NamedTuple):
  """A student's answer."""

  text: str
  tokens: int | None = None      # written; None: not known
  reason: str = "stop_token"     # why it ended, of `sampler.REASONS`; "abort" for one that could not be had
  ids: tuple[int, ...] = ()      # of the text, the one that stopped it included; (): not known

  @property
  def failed(self) -> bool:
    """Returns whether there is no answer, such as of a server that did not reply."""
    return self.reason == "abort"


class Student(Protocol):
  """The interface of students."""

  def answer(self, asked: Sequence[Messages], *, max_tokens: int, temperature: float,
             seed: int) -> Sequence[StudentReply]:
    """Answers each list of messages; the same seed and messages give the same."""


class NativeStudent:
  """A student that is a model in this process, whose weights lie in frozen["student"]."""

  def __init__(self, start: InitialModel, mesh, *, shared: bool, pad_tokens: int, batch_rows: int,
               block_tokens: int | None = None):
    """Takes a model; nothing is compiled before the first answer.

    Args:
      start: of the student.
      mesh: all devices.
      shared: whether it is a copy of what the teacher starts from, and has its base where adapters are
        trained.
      pad_tokens: lengths of what is scored are multiples of it.
      batch_rows: rows that are scored at a time, over all processes.
      block_tokens: tokens whose logits exist at the same time; None: all.
    """
    self.start = start
    self._sampler = NativeSampler(start.language, start.tokenizer, mesh)
    self._mesh = mesh
    self._shared = shared
    self._pad_tokens = pad_tokens
    self._batch_rows = batch_rows
    self._params: Any = None
    language = start.language

    def score(params, batch):
      hidden_BTD, _ = read_completions(language, params, batch)
      return token_logprobs(hidden_BTD, language.head(params), batch["completion_BT"],
                            block_tokens=block_tokens)

    self._score: Any = jax.jit(score, out_shardings=meshes.replicated(mesh))

  def load(self, trained: Trained) -> None:
    """Takes the student's weights out of what a source or an evaluation is handed."""
    held = trained.frozen[FROZEN]
    # A copy of adapters belongs to the base that lies beside those that are trained.
    self._params = merge_frozen(held, trained.frozen) if self._shared else held
    self._sampler.load(self._params, 0)

  def answer(self, asked: Sequence[Messages], *, max_tokens: int, temperature: float,
             seed: int) -> list[StudentReply]:
    """Answers; see `Student.answer`."""
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature,
                              stop_tokens=self.start.end_tokens)
    rollout = self._sampler.generate([self.prompt_ids(one).tolist() for one in asked], options, seed=seed)
    return [StudentReply(rollout.text_B[row], int(size), rollout.reason_B[row],
                         tuple(rollout.tokens_BT[row, :size].tolist()))
            for row, size in enumerate(rollout.length_B)]

  def prompt_ids(self, messages: Messages) -> np.ndarray:
    """Returns the ids of messages, by the student's own tokenizer and chat template.

    Raises:
      ValueError: for several messages where prompts are texts.
    """
    # One message is a text where there is no chat template, and several are refused.
    alone = self.start.template is None and len(messages) == 1
    prompt: Any = messages[0]["content"] if alone else [dict(one) for one in messages]
    return chats.prompt_ids(Problem("a question to the student", prompt), self.start.tokenizer,
                            self.start.template)

  def mean_logprobs(self, asked: Sequence[Messages], ids_B: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the mean log-probability per token, in nats, of answers behind messages; NaN for empty ones."""
    made = arrays.of_completions([self.prompt_ids(one).tolist() for one in asked], ids_B,
                                 pad_tokens=self._pad_tokens, align_tokens=self.start.language.align_tokens)
    size = self._batch_rows
    rows = len(ids_B)
    filled = {name: np.concatenate([array, np.repeat(array[-1:], -rows % size, axis=0)])
              for name, array in made.items()}
    mine = stepped.rows_of(size, **stepped.this_process())
    parts = []
    for first in range(0, rows, size):
      local = {name: array[first:first + size][mine] for name, array in filled.items()}
      batch = hosts.global_batch(self._mesh, {name: array for name, array in local.items()
                                              if name != "completion_mask_BT"})
      parts.append(np.asarray(self._score(self._params, batch)))
    mask_BT = made["completion_mask_BT"]
    total_B = np.where(mask_BT, np.concatenate(parts)[:rows], 0).sum(axis=1, dtype=np.float64)
    count_B = mask_BT.sum(axis=1)
    return np.where(count_B > 0, total_B / np.maximum(count_B, 1), np.nan)


class EndpointStudent:
  """A student that a server answers for, which puts messages into its own chat template."""

  def __init__(self, endpoint: Endpoint):
    """Takes the endpoint; nothing is asked yet."""
    self._endpoint = endpoint

  def answer(self, asked: Sequence[Messages], *, max_tokens: int, temperature: float,
             seed: int) -> list[StudentReply]:
    """Answers; see `Student.answer`. Where there is no answer after all tries, its reason is "abort"."""
    rows: list[list] = []
    if hosts.is_main():
      requests = [ChatRequest(one, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed + row})
                  for row, one in enumerate(asked)]
      rows = [_row_of(reply) for reply in self._endpoint.ask_all(requests)]
    # Of two processes that ask, each might get other answers: one asks, and tells the others.
    return [StudentReply(*row) for row in hosts.json_of_main(rows)]


def _row_of(reply) -> list:
  """Returns text, tokens and reason of what an endpoint gave."""
  if isinstance(reply, EndpointError):
    return ["", None, "abort"]
  choice = (reply.raw.get("choices") or [{}])[0]
  return [reply.text, reply.usage.completion_tokens,
          "length" if choice.get("finish_reason") == "length" else "stop_token"]


def open_student(config, teacher: InitialModel) -> InitialModel | None:
  """Opens the model of a native student; None where a module answers for it.

  Args:
    config: with the group teacher.
    teacher: what the policy starts from, of which the student is a copy if config.teacher.student=None.

  Raises:
    ValueError: if it cannot be opened, or is named and not used.
  """
  path = config.teacher.student
  name = config.teacher.student_template
  if config.teacher.sampler != "native":
    return None
  if path is None:
    return teacher
  if name == "own":
    template = None if config.data.chat_template is None else other_model.own_template(path)
  else:
    template = None if name == "texts" else name
  return other_model.open_other(config, path, template, field="teacher.student")


def load(config, start: InitialModel | None, mesh) -> Any:
  """Makes the student of a config.

  Args:
    config: with the group teacher.
    start: of `open_student`.
    mesh: all devices.

  Raises:
    ValueError: if there is no such module, or it has no answers to give.
  """
  if start is not None:
    return NativeStudent(start, mesh, shared=config.teacher.student is None,
                         pad_tokens=config.rollout.pad_tokens, batch_rows=config.data.batch_rows,
                         block_tokens=config.loss.block_tokens)
  if config.teacher.sampler == "endpoint":
    fields = config.teacher.endpoint.to_dict()
    for name in ("url", "served_as"):
      if fields[name] is None:
        raise ValueError(f"config.teacher.endpoint.{name}=None: config.teacher.sampler='endpoint' needs the "
                         "address of the student's server and its name there; set both, or sampler=native")
    try:
      return EndpointStudent(Endpoint(EndpointSettings(model=fields.pop("served_as"), **fields)))
    except ValueError as error:
      raise ValueError(f"config.teacher.endpoint: {error}") from error
  make: Callable = modules.attribute(config.teacher.sampler, "make", field="teacher.sampler")
  found = make(config)
  if not callable(getattr(found, "answer", None)):
    raise ValueError(f"config.teacher.sampler={config.teacher.sampler!r}: its make gave a "
                     f"{type(found).__name__} without answer(asked, *, max_tokens, temperature, seed)")
  return found
