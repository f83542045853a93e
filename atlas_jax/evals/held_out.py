"""Reading held-out text once, from its first segment to its last, with the state passed on."""
import contextlib

import jax
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import stopping
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes


def batches(source, *, max_tokens: int | None = None, processes: int = 1):
  """Yields the batches of a source up to its end or a limit, then closes it.

  Args:
    source: fresh; `next(params)` gives a batch of this process or raises StopIteration, `close()` frees it.
    max_tokens: places to read at most, padding and all processes included, but not less than one batch.
    processes: how many processes read, each its rows.
  """
  with contextlib.closing(source):
    read = size = 0
    # One batch is read whatever the limit, so that a small max_tokens still measures something.
    while not read or max_tokens is None or read + size <= max_tokens:
      stopping.check()
      try:
        batch = source.next(None)
      except StopIteration:
        return
      size = batch["tokens_BT"].size * processes
      read += size
      yield batch


def make_step(step, mesh: Mesh):
  """Compiles `(params, state, batch) -> (state, sums)`; rows stay split, the sums are whole everywhere."""
  # The state is donated: at no time are there two of them, which of a memory model is much.
  return jax.jit(step, donate_argnums=1, out_shardings=(meshes.batch_sharding(mesh), meshes.replicated(mesh)))


def add_up(step, params, model, source, mesh: Mesh, *, max_tokens: int | None = None) -> dict:
  """Reads all of a source and adds up what each segment gives.

  Args:
    step: what `make_step` gives.
    params: of the model, on the mesh.
    model: gives `zero_state(rows)`, where reading starts.
    source: see `batches`; all processes must read equally many batches.
    mesh: over which rows are split.
    max_tokens: see `batches`.

  Returns:
    The sums over all segments, float64 of NumPy; equal in every process, {} without any segment.
  """
  totals: dict = {}
  for sums in segments(step, params, model, source, mesh, max_tokens=max_tokens):
    # float64 on the host: sums in float32 count no further than 2^24 tokens.
    totals = {name: totals.get(name, 0.0) + np.asarray(value, np.float64) for name, value in sums.items()}
  return totals


def segments(step, params, model, source, mesh: Mesh, *, max_tokens: int | None = None):
  """Yields what each segment of a source gives, as NumPy arrays, equal in every process; see `add_up`."""
  state = None
  waiting = None
  for local in batches(source, max_tokens=max_tokens, processes=jax.process_count()):
    batch = hosts.global_batch(mesh, local)
    if state is None:
      # Compiled, so that each device makes its own rows and the whole is on none.
      state = _zero_state(model, batch["tokens_BT"].shape[0], mesh)
    state, sums = step(params, state, batch)
    # Those of a segment are read while the next one is computed.
    if waiting is not None:
      yield jax.tree.map(np.asarray, waiting)
    waiting = sums
  if waiting is not None:
    yield jax.tree.map(np.asarray, waiting)


def _zero_state(model, rows: int, mesh: Mesh):
  return jax.jit(lambda: model.zero_state(rows), out_shardings=meshes.batch_sharding(mesh))()
