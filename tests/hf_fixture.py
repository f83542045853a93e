"""Tiny pretrained checkpoints with what transformers computes from them, loaded once."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language.pretrained import hf_import
from atlas_jax.models import head

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "hf_models"
NAMES = ("qwen2_tiny", "qwen2_tiny_sharded", "qwen3_tiny", "llama_tiny", "llama3_rope_tiny")
SHARDED = FOLDER / "qwen2_tiny_sharded"
# Implementations of attention differ by 6e-6 on these logits, float32 from float64 by 9e-6.
TOLERANCE = 5e-5


@functools.lru_cache
def load(name: str):
  """Reads a model; gives it and its parameters."""
  return hf_import.load(str(FOLDER / name))[:2]


@functools.lru_cache
def reference(name: str) -> dict:
  """Returns the recorded arrays of a model."""
  with np.load(FOLDER / name / "reference.npz") as file:
    return dict(file)


@functools.partial(jax.jit, static_argnums=0)
def score(model, params, tokens_BT, doc_BT):
  """Returns the logits of whole texts."""
  out = model.apply({"params": params}, tokens_BT, doc_BT=doc_BT)
  return head.logits(params, out.hidden_BTD)


def batch(name: str):
  """Returns recorded tokens, their documents, which are real, and their logits."""
  recorded = reference(name)
  real_BT = recorded["attention_mask"].astype(bool)
  doc_BT = jnp.where(real_BT, 0, -1).astype(jnp.int32)
  return jnp.asarray(recorded["input_ids"], jnp.int32), doc_BT, real_BT, recorded["logits"]


def copy(source, target, **changes):
  """Copies a checkpoint's folder with settings of its config changed; None takes one out."""
  shutil.copytree(source, target)
  settings = json.loads((target / "config.json").read_text())
  settings = {name: value for name, value in {**settings, **changes}.items() if value is not None}
  (target / "config.json").write_text(json.dumps(settings))
  return target
