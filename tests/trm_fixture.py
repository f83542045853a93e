"""What the original TRM program computed, read from tests/fixtures/trm, and the model with its weights."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.models import trm
from atlas_jax.puzzles import trm_import

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "trm"
TINY = dict(variant="trm", mixer="attention", vocab_size=7, seq_len=6, width=12, heads=3, depth=2,
            expansion=0.1, n_outer=2, n_inner=2, n_prefix=2, row_width=15, positions="rope",
            norm_eps=1e-5, rope_base=10_000.0, dtype="float32")  # fmt: skip


@functools.lru_cache
def arrays(name: str) -> dict:
  """The arrays of one file by name."""
  with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


def part(name: str, prefix: str) -> dict:
  """The arrays whose names start with a prefix, without it."""
  return {key.removeprefix(prefix): value for key, value in arrays(name).items() if key.startswith(prefix)}


def model_of(name: str) -> trm.TRM:
  """The model of a file's configuration."""
  given = json.loads(str(arrays(name)["config_json"]))
  return trm.TRM(
    variant="trm", mixer="mlp" if given["mlp_t"] else "attention", vocab_size=given["vocab_size"],
    seq_len=given["seq_len"], width=given["hidden_size"], heads=given["num_heads"], depth=given["L_layers"],
    expansion=given["expansion"], n_outer=given["H_cycles"], n_inner=given["L_cycles"],
    n_prefix=given["puzzle_emb_len"], row_width=given["puzzle_emb_ndim"], positions=given["pos_encodings"],
    norm_eps=given["rms_norm_eps"], rope_base=given["rope_theta"], dtype=given["forward_dtype"])  # fmt: skip


def weights(name: str) -> dict:
  """The weights under the original's names, float32."""
  return {key: value.astype(np.float32) for key, value in part(name, "w/").items()}


def loaded(name: str):
  """Model, parameters, reset vectors and puzzle table."""
  model = model_of(name)
  params, reset, table = trm_import.params_of(weights(name), model)
  return model, params, reset, jnp.asarray(table)


def batch(name: str, step: int) -> dict:
  """The puzzles offered at a step, counted from 1."""
  given = part(name, f"batch{step}/")
  names = {"inputs_BT": "inputs", "labels_BT": "labels", "ids_B": "puzzle_identifiers"}
  return {ours: jnp.asarray(given[theirs]) for ours, theirs in names.items()}


@functools.lru_cache
def step_of(model: trm.TRM):
  """A compiled supervision step."""
  return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))


def tiny(*, B: int = 2, seed: int = 0, **fields):
  """A small model, its parameters, inputs, rows of the table and latents, all random."""
  model = trm.TRM(**(TINY | fields))
  draw = np.random.default_rng(seed)
  inputs_BT = jnp.asarray(draw.integers(0, model.vocab_size, (B, model.seq_len)), jnp.int32)
  rows_BE = jnp.asarray(draw.normal(size=(B, model.row_width)), jnp.float32)
  latents = tuple(jnp.asarray(draw.normal(size=x.shape), x.dtype) for x in model.zero_latents(B))
  params = jax.jit(model.init)(jax.random.key(seed), inputs_BT, rows_BE, latents)["params"]
  halt = jnp.asarray(draw.normal(size=params["halt_kernel"].shape), jnp.float32)
  return model, params | {"halt_kernel": halt}, inputs_BT, rows_BE, latents
