"""Builds schedulers of tiny models whose programs are compiled once for all tests, and requests for them."""
import dataclasses
import functools

import jax
import numpy as np

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding import plain, programs
from atlas_jax.language.decoding.programs import Shapes
from atlas_jax.language.decoding.requests import CompletionRequest, EndEvent, TokenEvent
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.decoding.scheduler import Scheduler
from atlas_jax.language.decoding.scheduler_settings import Settings
from atlas_jax.language.decoding.served_model import ServedModel
from tests.language.languages import tiny

KINDS = ("decoder", "memory")
PIECE, ROWS, ROOM = 8, 4, 160
TOKENIZER = ByteTokenizer()
_make = programs.make


@functools.cache
def _made(form, shapes, language_of):
  return _make(language_of.language, shapes)


class _Form:
  """Compares by the model's form, so that equal models share programs."""

  def __init__(self, language):
    self.language = language

  def __hash__(self):
    return hash(repr(self.language.module))

  def __eq__(self, other):
    return repr(self.language.module) == repr(other.language.module)


def shared_programs(language, shapes, *, mesh=None):
  """Stands in for `programs.make`."""
  return _made(repr(language.module), shapes, _Form(language))


def shapes_of(kind, rows=ROWS):
  return Shapes(rows, PIECE, ROOM if kind == "decoder" else None)


def served(kind, version=0, scale=None):
  language, params = tiny(kind)
  if scale is not None:
    params = jax.tree.map(lambda x: x * np.float32(scale), params)
  return ServedModel("base", version, language, params)


def scheduler(kind="memory", **settings):
  made = Scheduler(Settings(**(dict(slots=4, group_rows=ROWS, piece_tokens=PIECE, room_tokens=ROOM,
                                    store_every_tokens=PIECE, queue_requests=1000) | settings)), TOKENIZER)
  made.load("base", *tiny(kind), version=0)
  return made


def request(prompt, *, seed=0, **fields):
  """Makes a request; options of sampling are among its fields."""
  sampling = {name: fields.pop(name) for name in list(fields) if name in SamplingOptions.__dataclass_fields__}
  options = SamplingOptions(**(dict(max_tokens=8) | sampling))
  return CompletionRequest(tuple(prompt), options, seed=seed, **fields)


def expected(kind, asked, *, model=None, slot=0):
  """Returns the events of a request in the plain form, a list for each completion."""
  model = model or served(kind)
  made = shared_programs(model.language, shapes_of(kind))
  return [events for events, _ in plain.complete(made, model, asked, TOKENIZER, slot=slot)]


def events_of(stream):
  """Returns the events of each completion as the plain form has them, and the ends."""
  size = stream.request.sampling.n
  tokens, ends = [[] for _ in range(size)], [None] * size
  for event in stream:
    if isinstance(event, EndEvent):
      ends[event.index] = event
      if tokens[event.index]:
        last = tokens[event.index][-1]
        tokens[event.index][-1] = dataclasses.replace(last, text=last.text + event.text)
    else:
      assert isinstance(event, TokenEvent)
      tokens[event.index].append(event)
  return tokens, ends


def random_prompt(draw, low=1, high=40):
  return draw.integers(0, 257, draw.integers(low, high + 1)).tolist()
