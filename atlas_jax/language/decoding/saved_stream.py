"""Streams on the disk: a completion half written, with all that its next id depends on."""
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from atlas_jax.files import json_file
from atlas_jax.files.damage import Damaged, as_damaged
from atlas_jax.language.decoding import state_files
from atlas_jax.language.decoding.completion_writer import CompletionWriter
from atlas_jax.language.decoding.programs import Shapes, SlotPrograms, place
from atlas_jax.language.decoding.requests import CompletionRequest
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.decoding.served_model import ModelTable, ServedModel

REMEDY = "it cannot be gone on with: ask again with its prompt"
_FORM = "atlas stream 2"


class SavedStream(NamedTuple):
  """A stream that was read from a file."""

  request: CompletionRequest
  model: ServedModel
  tokens: list[int]  # drawn so far
  row: Any  # state behind all of them but the last
  draws: Any  # state of its draws


def save(file, model: ServedModel, shapes: Shapes, writer: CompletionWriter, row, draws) -> None:
  """Writes a stream, whole and durable.

  Raises:
    ValueError: if its request has a function, which no file holds.
  """
  if writer.request.allowed is not None:
    raise ValueError("a stream whose request has `allowed` cannot be saved: a function is no data")
  fields = {field.name: getattr(writer.request, field.name)
            for field in dataclasses.fields(CompletionRequest) if field.name != "allowed"}
  fields |= {"sampling": dataclasses.asdict(writer.request.sampling), "model": model.name,
             "first": writer.request.first + writer.index, "time_limit_s": None,
             "logit_bias": [list(pair) for pair in writer.request.logit_bias.items()]}
  fields["sampling"]["n"] = 1
  header = {"form": _FORM, "key": model.stream_key(shapes), "version": model.version, "shapes": list(shapes),
            "request": fields, "tokens": writer.tokens}
  state_files.write_state(file, header, jax.tree.leaves(jax.device_get((row, draws))))


def load(file, models: ModelTable, programs_of) -> SavedStream:
  """Reads a stream.

  Args:
    file: that `save` wrote.
    models: that are served.
    programs_of: model -> SlotPrograms.

  Raises:
    Damaged: if the file is broken.
    ValueError: if the model is not served, is another than that of the stream, or its programs have other
      sizes; names both.
    OSError: if there is no such file, or it may not be read.
  """
  header, arrays = state_files.read_state(file, remedy=REMEDY)
  json_file.field(file, header, "form", lambda form: form == _FORM, f"{_FORM!r}, as of a saved stream",
                  remedy="give a file that a scheduler saved")
  with as_damaged(file, "does not hold a stream", REMEDY):
    shapes = Shapes(*header["shapes"])
    fields = dict(header["request"])
    fields["sampling"] = SamplingOptions(**fields["sampling"])
    fields["logit_bias"] = dict(map(tuple, fields["logit_bias"]))
    request = CompletionRequest(**fields)
  model = models.get(request.model)
  programs: SlotPrograms = programs_of(model)
  if shapes != programs.shapes:
    raise ValueError(f"the stream in {file} was written with {shapes} and this scheduler has "
                     f"{programs.shapes}, which rounds otherwise; serve it with the same")
  if header["key"] != model.stream_key(shapes):
    raise ValueError(f"the stream in {file} belongs to other weights than those of the model {model.name!r} "
                     f"(it was of version {header['version']}, this is {model.version}), or to another "
                     "version of jax, XLA_FLAGS or kind of processor; load what it was written with")
  row, draws = _arranged(file, programs, arrays)
  return SavedStream(request, model, list(header["tokens"]), row, draws)


def _arranged(file, programs: SlotPrograms, arrays: list[np.ndarray]):
  """Returns the arrays as states of one row."""
  leaves, form = jax.tree.flatten(jax.eval_shape(lambda: programs.take(*programs.group(), np.int32(0))))
  wanted = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
  if [(array.shape, array.dtype) for array in arrays] != wanted:
    raise Damaged(file, "has other arrays than a stream of this model", REMEDY)
  return place(jax.tree.unflatten(form, arrays))
