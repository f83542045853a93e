"""Writes one completion at a time, without a store: slow and obvious, and what a scheduler must equal."""
import dataclasses

import jax
import numpy as np

from atlas_jax.language.decoding import drawing
from atlas_jax.language.decoding.completion_writer import CompletionWriter
from atlas_jax.language.decoding.programs import SlotPrograms, place
from atlas_jax.language.decoding.requests import CompletionRequest, TokenEvent
from atlas_jax.language.decoding.served_model import ServedModel


def complete(programs: SlotPrograms, model: ServedModel, request: CompletionRequest, tokenizer, *,
             slot: int = 0) -> list[tuple[list[TokenEvent], str]]:
  """Writes the completions of a request one after the other.

  Args:
    programs: of the model.
    model: the weights.
    request: which prompt, and how.
    tokenizer: of the model.
    slot: of the group, in which all are written; it makes no difference.

  Returns:
    (events, reason) of each completion; the last event also has the text that was held back.
  """
  row = programs.blank()
  size = programs.shapes.piece_tokens
  prompt = np.asarray(request.prompt, np.int32)
  for at in range(0, len(prompt), size):
    row, hidden_BD = programs.read(model.params, row, prompt[at:at + size])
  return [_write(programs, model, request, tokenizer, slot, row, hidden_BD, index)
          for index in range(request.sampling.n)]


def _write(programs, model, request, tokenizer, slot, row, hidden_BD, index):
  writer = CompletionWriter(request, index, tokenizer)
  vocab_size = model.language.vocab_size
  draws = drawing.start(request, request.first + index, vocab_size)
  bias_V = writer.bias(vocab_size)
  if bias_V is not None:
    draws = draws._replace(bias_BV=bias_V[None])
  draws, drawn = programs.first(model.params, hidden_BD, place(draws))
  events = [writer.push(jax.device_get(drawn), 0)]
  state, draws = programs.insert(*programs.group(), np.int32(slot), row, draws)
  while writer.reason is None:
    bias_V = writer.bias(vocab_size)
    if bias_V is not None:
      draws = programs.set_bias(draws, np.int32(slot), bias_V)
    state, draws, drawn = programs.step(model.params, state, draws)
    events.append(writer.push(jax.device_get(drawn), slot))
  events[-1] = dataclasses.replace(events[-1], text=events[-1].text + writer.flush())
  return events, writer.reason
