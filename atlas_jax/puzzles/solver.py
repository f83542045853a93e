"""Solves puzzles with a recursive model: a pool of slots on the mesh, filled from a queue of examples.

A slot works on one example, one supervision step per call of the model, until the example is done; the slot
then takes the next example of the queue. In mode "all" an example is done after n_supervision steps, as in
the original; in mode "halting" it is done early once its halting logit is above a threshold, so that easy
examples cost less. Slots do not see each other: an answer does not depend on which slot worked when.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871 (mode "all"); noise on the latents, with the surest of
several trajectories taken: arXiv:2605.19943, keyed per example here.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from atlas_jax.data import stepped
from atlas_jax.evals import stopping
from atlas_jax.losses import recursion
from atlas_jax.models import act
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained

MODES = ("all", "halting")
# `AccuracyTotals` averages these over labelled examples.
MEANS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss")


class Result(NamedTuple):
  """The answer to one example, all of NumPy and Python."""

  example: int  # place among the examples read
  input_T: np.ndarray  # tokens
  labels_T: np.ndarray  # tokens, -100 where nothing is scored
  id: int  # row of the puzzle table
  prediction_T: np.ndarray  # tokens
  halt_logit: float
  metrics: dict[str, float]  # MEANS; what needs labels means nothing without
  labelled: bool  # whether anything is scored
  calls: int  # of the model, made when the example was done

  @property
  def q(self) -> float:
    """Returns how likely the model takes its answer to be right, in [0, 1].

    0 if its logit is not a number.
    """
    if math.isnan(self.halt_logit):
      return 0.0
    # The sigmoid in float64, as the original's evaluator has it: votes of equal counts are ordered by the
    # mean of q, and in float32 all logits above 17 would give 1. The form does not overflow.
    return float(np.exp(-np.logaddexp(0.0, -np.float64(self.halt_logit))))

  @property
  def solved(self) -> bool:
    """Returns whether every scored token is right."""
    return self.labelled and self.metrics["exact_accuracy"] == 1


class Slots(NamedTuple):
  """State on the devices; every leaf leads with B."""

  pool: act.Pool
  rows_BE: Any  # of the puzzle table
  example_B: Any  # int32
  trajectory_B: Any  # int32


class StepScores(NamedTuple):
  """Scores of every slot after a step; every leaf leads with B and is whole in every process."""

  halted_B: Any
  halt_logit_B: Any
  prediction_BT: Any
  metrics: dict


class _Assignment(NamedTuple):
  """An example at work in a slot, as the host knows it."""

  example: int
  trajectory: int
  input_T: np.ndarray
  labels_T: np.ndarray
  id: int


class SolverOptions(NamedTuple):
  """Settings of the solver.

  Attributes:
    batch_rows: slots of all processes together.
    n_supervision: most steps on an example.
    mode: "all" or "halting", see above.
    halt_threshold: halting logit above which an example is done, in mode "halting".
    n_trajectories: how often each example is worked on; the one with the highest halting logit counts.
    noise_std: of normal noise added to the latents before every step.
    max_examples: how many to read; None: all.
    token_loss, loss_dtype: see `recursion.recursion_loss`.
    seed: of the noise.
  """

  batch_rows: int
  n_supervision: int
  mode: str = "all"
  halt_threshold: float = 0.0
  n_trajectories: int = 1
  noise_std: float = 0.0
  max_examples: int | None = None
  token_loss: str = "stablemax"
  loss_dtype: str = "float32"
  seed: int = 0

  @property
  def threshold(self) -> float | None:
    """Returns the halting logit above which an example is done early; None: never."""
    return self.halt_threshold if self.mode == "halting" else None


def make(model, batches_of: Callable, mesh: Mesh, options: SolverOptions):
  """Makes the function that answers all examples; it is compiled once, whatever is read.

  Args:
    model: `apply({"params": params}, inputs_BT, rows_BE, latents)`, `zero_latents(rows)`, `seq_len` and
      `row_width`, see models.trm.TRM.
    batches_of: gives the batches, from the first one, each time it is called: inputs_BT, labels_BT (-100
      where nothing is scored) and ids_B of any number of rows, all rows in every process. Rows whose inputs
      are all 0 are padding and left out.
    mesh: over which slots are split.
    options: see `SolverOptions`.

  Returns:
    solve(trained) -> an iterator over Results in the order of the examples. Of `state.Trained`, `frozen` has
    "reset", the vectors that latents start from, one [D] per latent, and `tables` has "puzzles",
    [ids, row_width], if the model has rows.

  Raises:
    ValueError: if options do not fit together, or the slots do not divide over the mesh.
  """
  _check(mesh, options)
  # Outside of `solve`: evaluations come by the dozen, and only shapes decide what is compiled.
  device = _compiled(model, mesh, options)
  # Without a threshold the host knows who has finished, and need not wait for the device to say so.
  least_steps = options.n_supervision if options.threshold is None else 1

  def solve(trained: Trained) -> Iterator[Result]:
    queue = _queue(batches_of(), options.max_examples, options.n_trajectories)
    starts = tuple(np.asarray(start) for start in trained.frozen["reset"])
    done = _work(device, mesh, [None] * options.batch_rows, queue, least_steps, model.seq_len, trained.params,
                 starts, table_of(model, trained.tables))
    return _counting_unsure(_in_order(done, options.n_trajectories))

  return solve


def _counting_unsure(results: Iterator[Result]) -> Iterator[Result]:
  """Passes results on; warns at the end if some have a halting logit that is not a number."""
  count = bad = 0
  for result in results:
    count = count + 1
    bad = bad + math.isnan(result.halt_logit)
    yield result
  if bad:
    logging.warning("%d of %d answers have a halting logit that is not a number: the network is broken, and "
                    "they count with a probability of 0", bad, count)


def _check(mesh: Mesh, options: SolverOptions) -> None:
  trajectories = options.n_trajectories
  noise = options.noise_std
  if options.mode not in MODES:
    raise ValueError(f"config.puzzle_eval.mode={options.mode!r} is not known; choose one of "
                     f"{', '.join(MODES)}")
  for name, value in (("supervision.n_supervision", options.n_supervision),
                      ("puzzle_eval.n_trajectories", trajectories)):
    if value < 1:
      raise ValueError(f"config.{name}={value} must be at least 1")
  if noise < 0:
    raise ValueError(f"config.puzzle_eval.noise_std={noise} must be at least 0; 0 adds no noise")
  # Nothing else differs between trajectories of one example.
  if trajectories > 1 and not noise:
    raise ValueError(f"config.puzzle_eval.n_trajectories={trajectories} with noise_std=0 repeats the same "
                     "answer; set config.puzzle_eval.noise_std, or n_trajectories=1")
  meshes.check_rows(mesh, options.batch_rows)


class _Device(NamedTuple):
  """Compiled functions of the solver."""

  empty: Callable  # () -> Slots
  refill: Callable  # see _refill
  supervise: Callable  # (params, slots) -> (slots, Scores)


def table_of(model, tables):
  """Returns the table of puzzles, None for a model without rows; refuses tables that lack it."""
  if not model.row_width:
    return None
  if "puzzles" not in tables:
    raise ValueError(f"config.trm.row_width={model.row_width} needs a table of puzzles, but the evaluation "
                     f"got the tables {sorted(tables)}; hand the tables of the train state")
  return tables["puzzles"]


# What the devices do.


def _compiled(model, mesh: Mesh, options: SolverOptions) -> _Device:
  split = meshes.batch_sharding(mesh)
  whole = meshes.replicated(mesh)

  def supervise(params, slots: Slots):
    pool = slots.pool
    latents = _noisy(slots, options.noise_std, options.seed) if options.noise_std else pool.latents
    out = model.apply({"params": params}, pool.inputs_BT, slots.rows_BE, latents)
    # The halting logit is of the answer after this step, so the answer that is
    # handed out is the one it judges.
    steps_B, halted_B = act.halt_eval(pool.steps_B, out.halt_logit_B, n_supervision=options.n_supervision,
                                      threshold=options.threshold)
    scores = _scores(out, pool.labels_BT, steps_B, halted_B, options)
    return slots._replace(pool=pool._replace(latents=out.latents, steps_B=steps_B)), scores

  return _Device(
      # Slots are split over the mesh. Scores are small and whole everywhere: all processes must free the same
      # seats. Donated slots, latents above all, are updated in place; only one copy of them exists.
      empty=jax.jit(lambda: _empty(model, options.batch_rows), out_shardings=split),
      refill=jax.jit(_refill, donate_argnums=0, out_shardings=split),
      supervise=jax.jit(supervise, donate_argnums=1, out_shardings=(split, whole)))


def _empty(model, batch_rows: int) -> Slots:
  zeros_B = jnp.zeros((batch_rows,), jnp.int32)
  return Slots(act.empty_pool(model, batch_rows, model.seq_len),
               jnp.zeros((batch_rows, model.row_width), jnp.float32), zeros_B, zeros_B)


def _refill(slots: Slots, offered: dict, starts: tuple, table) -> Slots:
  """Returns fresh slots the example offered to them, with its row of the table."""
  fresh_B = offered["fresh_B"]
  # Which slots are refilled the host decides, by its seats and its queue; the pool's own flags, which
  # training goes by, are overwritten.
  pool = act.refill(slots.pool._replace(halted_B=fresh_B), offered, tuple(map(jnp.asarray, starts)))
  rows_BE = slots.rows_BE
  if table is not None:
    rows_BE = jnp.where(fresh_B[:, None], table[offered["ids_B"]].astype(rows_BE.dtype), rows_BE)
  return Slots(pool, rows_BE, jnp.where(fresh_B, offered["example_B"], slots.example_B),
               jnp.where(fresh_B, offered["trajectory_B"], slots.trajectory_B))


def _noisy(slots: Slots, std: float, seed: int) -> tuple:
  """Adds noise that depends on example, trajectory and step alone, not on the slot."""
  def one(example, trajectory, step, latents):
    key = jax.random.key(seed)
    # Folded in one by one, so each triple has a key of its own, however many slots,
    # processes or batches there are.
    for number in (example, trajectory, step):
      key = jax.random.fold_in(key, number)
    keys = jax.random.split(key, len(latents))
    return tuple(z + (std * jax.random.normal(key, z.shape, jnp.float32)).astype(z.dtype)
                 for key, z in zip(keys, latents))

  return jax.vmap(one)(slots.example_B, slots.trajectory_B, slots.pool.steps_B, slots.pool.latents)


def _scores(out, labels_BT, steps_B, halted_B, options: SolverOptions) -> StepScores:
  # `recursion_loss` adds up over rows; row by row under vmap its sums are the metrics of each slot. All count
  # as halted: the host reads those that are.
  def one(logits_TV, halt_logit, labels_T, steps):
    _, metrics = recursion.recursion_loss(
        logits_TV[None], halt_logit[None], labels_T[None], halted_B=jnp.ones((1,), bool), steps_B=steps[None],
        token_loss=options.token_loss, dtype=options.loss_dtype)
    return metrics | {"steps": steps.astype(jnp.float32)}  # Of unlabelled rows too.

  metrics = jax.vmap(one)(out.logits_BTV, out.halt_logit_B, labels_BT, steps_B)
  prediction_BT = jnp.argmax(out.logits_BTV, axis=-1).astype(jnp.int32)
  return StepScores(halted_B, out.halt_logit_B, prediction_BT, metrics)


# What the host does.


def _queue(batches: Iterable[dict], max_examples: int | None, n_trajectories: int) -> Iterator[_Assignment]:
  example = 0
  for batch in batches:
    columns = (np.asarray(batch[name]) for name in ("inputs_BT", "labels_BT", "ids_B"))
    for input_T, labels_T, id_ in zip(*columns):
      # Padding of a last, short batch. It must not take a slot.
      if not input_T.any():
        continue
      if max_examples is not None and example >= max_examples:
        return
      for trajectory in range(n_trajectories):
        yield _Assignment(example, trajectory, input_T, labels_T, int(id_))
      example += 1


def _work(device: _Device, mesh: Mesh, seats: list, queue: Iterator[_Assignment], least_steps: int,
          seq_len: int, params, starts: tuple, table) -> Iterator[tuple[_Assignment, Result]]:
  """Works until queue and seats are empty; gives results as examples finish."""
  # Calls since the seat was taken, counted on the host. As long as no seat can be finished, the loop sends
  # the next call without waiting for the scores of this one, and the devices need not idle.
  made_B = np.zeros(len(seats), np.int64)
  slots = device.empty()
  calls = 0
  while True:
    stopping.check()
    fresh_B = _take_seats(seats, queue)
    if not any(seats):
      return
    if fresh_B.any():
      offered = hosts.global_batch(mesh, _offered(seats, fresh_B, seq_len))
      slots = device.refill(slots, offered, starts, table)
    slots, scores = device.supervise(params, slots)
    calls = calls + 1
    made_B = np.where(fresh_B, 1, made_B + 1)
    if any(seat and made >= least_steps for seat, made in zip(seats, made_B)):
      yield from _retire(seats, scores, calls)


def _take_seats(seats: list, queue: Iterator[_Assignment]):
  """Fills free seats from the queue as far as it goes; says which are new."""
  fresh_B = np.zeros(len(seats), bool)
  for i, seat in enumerate(seats):
    if seat is None:
      seats[i] = next(queue, None)
      fresh_B[i] = seats[i] is not None
  return fresh_B


def _offered(seats: list, fresh_B, seq_len: int) -> dict:
  """Returns what this process's slots are offered; slots that take nothing are offered padding."""
  # Every process keeps all seats, filled from an equal queue, and hands over its own block of rows.
  mine = stepped.rows_of(len(seats), **stepped.this_process())
  padding_T = np.zeros(seq_len, np.int32)
  idle = _Assignment(0, 0, padding_T, padding_T, 0)
  taken = [seats[row] if fresh_B[row] else idle for row in mine]
  return {
      "inputs_BT": np.stack([seat.input_T for seat in taken]).astype(np.int32),
      "labels_BT": np.stack([seat.labels_T for seat in taken]).astype(np.int32),
      "ids_B": np.array([seat.id for seat in taken], np.int32),
      "example_B": np.array([seat.example for seat in taken], np.int32),
      "trajectory_B": np.array([seat.trajectory for seat in taken], np.int32),
      "fresh_B": fresh_B[mine]}


def _retire(seats: list, scores: StepScores, calls: int) -> Iterator[tuple[_Assignment, Result]]:
  """Frees the seats of finished examples and returns their results."""
  # Waits for the call. Of the other scores nothing is fetched unless some seat is done.
  halted_B = np.asarray(scores.halted_B)
  done = [i for i, seat in enumerate(seats) if seat and halted_B[i]]
  if not done:
    return
  fetched = jax.tree.map(np.asarray, scores)
  for i in done:
    seat, seats[i] = seats[i], None
    metrics = {name: float(fetched.metrics[name][i]) for name in MEANS}
    # A copy, or the result would keep the whole batch's predictions alive.
    yield seat, Result(seat.example, seat.input_T, seat.labels_T, seat.id, fetched.prediction_BT[i].copy(),
                       float(fetched.halt_logit_B[i]), metrics, bool(fetched.metrics["count"][i]), calls)


def _in_order(retired: Iterator[tuple[_Assignment, Result]], n_trajectories: int) -> Iterator[Result]:
  """Chooses among the trajectories of each example and restores the order of the examples."""
  # Holds what was done before an earlier example was: in mode "halting" easy ones overtake hard ones.
  waiting: dict[int, dict[int, Result]] = {}
  following = 0
  for seat, result in retired:
    waiting.setdefault(seat.example, {})[seat.trajectory] = result
    while len(waiting.get(following, ())) == n_trajectories:
      tried = waiting.pop(following)
      # Sorted, so that of equal logits the first trajectory counts, in whatever order slots were done.
      surest = max(sorted(tried), key=lambda trajectory: tried[trajectory].halt_logit)
      yield tried[surest]._replace(calls=max(each.calls for each in tried.values()))
      following += 1
