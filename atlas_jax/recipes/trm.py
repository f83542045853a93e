"""Tiny recursive models on puzzles: one supervision step on a pool of puzzles per update.

A batch is offered to a pool of as many slots. A slot works on one puzzle for several updates, each of which
is one supervision step with a gradient of its own; when it halts, it takes the row of the batch offered to
it, and rows offered to slots at work are passed over. The pool is the carry, the puzzles' embeddings are a
table outside the optimizer, the vectors that states start from are frozen.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871; Wang et al. 2025, arXiv:2506.21734 (pool, halting, table).
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.evals import Eval
from atlas_jax.losses import recursion
from atlas_jax.models import act, trm
from atlas_jax.optim import sign_rows
from atlas_jax.puzzles import accuracy, grids, pictures, solver, step_answers, tracing
from atlas_jax.puzzles import sets as puzzle_sets
from atlas_jax.puzzles.arc import evaluation
from atlas_jax.puzzles.initial_model import TABLE_ROWS_MULTIPLE, TrmStart, n_table_rows
from atlas_jax.puzzles.source import puzzle_name
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe, Tables, Update
from atlas_jax.state import Init, LoadedParams

__all__ = ["TABLE_ROWS_MULTIPLE", "make", "n_table_rows"]
NEVER = -1.0  # Stands for a slot that has not finished a puzzle yet; a carry holds finite numbers.
OVER_FINISHED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")  # Means over finished puzzles.
OPTIONAL = tuple(f"{group}/{name}" for group in ("train", "recent") for name in OVER_FINISHED)


class Carry(NamedTuple):
  """State passed from update to update; every leaf leads with B."""

  pool: act.Pool
  finished: dict[str, Any]  # name -> [B] float32: what each slot's last finished puzzle was like


def model_of(config) -> trm.TRM:
  """Makes the network of a config."""
  shape = puzzle_sets.shape_of(config.puzzles)
  sizes = {name: value for name, value in config.trm.items() if name != "path"}
  return trm.TRM(**sizes, vocab_size=shape.vocab_size, seq_len=shape.seq_len)


def init_params(config, model: trm.TRM, rng):
  """Draws the parameters a run starts from."""
  inputs_BT = jnp.zeros((1, model.seq_len), jnp.int32)
  rows_BE = jnp.zeros((1, config.trm.row_width), jnp.float32)
  return model.init(rng, inputs_BT, rows_BE, model.zero_latents(1))["params"]


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  check_loss_dtype(config.supervision.loss_dtype)
  sets = puzzle_sets.load(config)
  model = model_of(config)
  start = None if config.trm.path is None else TrmStart(config, model, sets)
  return Recipe(
      init_of(config, model, sets.train.n_ids), loss_of(config, model), puzzle_sets.source_of(config, sets),
      evals_of(config, model, sets, mesh),
      load=None if start is None else lambda mesh, fresh: LoadedParams(*start.read(mesh, fresh)),
      update=update_of(config), accounting=accounting_of(config), assets=assets_of(sets, start))


def accounting_of(config, unit: str = "supervision_steps") -> Accounting:
  """Returns what an update counts; see `recipes.Accounting`."""
  return Accounting(unit, finish_of(config.data.batch_rows), OPTIONAL, backward_frac=1 / config.trm.n_outer)


def update_of(config) -> Update:
  """Returns the effects of an update besides moving parameters: a model with rows has a table of them."""
  return Update(tables=tables_of(config) if config.trm.row_width else None)


def assets_of(sets: puzzle_sets.Sets, start: TrmStart | None) -> Assets:
  """Returns the files of a run: what its puzzles are, and vectors that it took over from other weights."""
  def save(workdir) -> None:
    sets.save(workdir)
    if start is not None:
      start.save(workdir)

  def check(workdir) -> None:
    sets.check_run(workdir)
    if start is not None:
      start.open(workdir)

  return Assets(save, check)


def check_loss_dtype(dtype: str) -> None:
  """Refuses a loss in more digits than jax is set to.

  Raises:
    ValueError: says what to set.
  """
  if dtype == "float64" and not jax.config.read("jax_enable_x64"):
    raise ValueError("config.supervision.loss_dtype='float64' needs jax's 64-bit mode; set JAX_ENABLE_X64=1, "
                     "or take 'float32', which agrees with it to 1e-6")


def init_of(config, model: trm.TRM, n_ids: int):
  """Makes the function from a key to what training starts from."""
  def init(rng):
    # The second half, as `puzzles.initial_model.drawn_reset` draws it again for whoever uses the run.
    params_key, reset_key = jax.random.split(rng)
    rows = config.data.batch_rows
    pool = act.empty_pool(model, rows, model.seq_len)
    finished = {name: jnp.full((rows,), NEVER, jnp.float32) for name in OVER_FINISHED}
    tables = ()
    # Rows start at zero, as in the sources; sign descent moves each by a full step at its first gradient.
    if config.trm.row_width:
      tables = {"puzzles": jnp.zeros((n_table_rows(n_ids), config.trm.row_width), jnp.float32)}
    return Init(init_params(config, model, params_key), frozen={"reset": model.reset(reset_key)},
                carry=Carry(pool, finished), tables=tables)

  return init


def tables_of(config) -> Tables:
  """Returns which rows of the puzzle table an update reads, and how it changes them."""
  # The choice that `act.refill` makes inside the loss, made before it: rows are gathered outside, and the
  # gradient is taken with respect to them alone, not to the table.
  def ids_of(batch, carry: Carry):
    return jnp.where(carry.pool.halted_B, batch["ids_B"], carry.pool.ids_B)

  def rows(tables, batch, carry):
    return tables["puzzles"][ids_of(batch, carry)]

  def update(tables, batch, carry, grads, *, scale):
    table = sign_rows.update(tables["puzzles"], ids_of(batch, carry), grads, rate=config.table.lr * scale,
                             weight_decay=config.table.weight_decay)
    return {"puzzles": table}

  return Tables(rows, update)


def loss_of(config, model: trm.TRM):
  """Makes the loss of one update; see `Recipe.loss`. Its weight counts the steps of all slots."""
  fields = config.supervision

  def loss(params, batch, *, frozen, carry, rng, rows=None):
    pool = act.refill(carry.pool, batch, frozen["reset"])
    size = pool.ids_B.shape[0]
    rows_BE = jnp.zeros((size, 0), jnp.float32) if rows is None else rows
    finished = carry.finished
    total = 0.0
    steps = 0
    sums = {}
    # A Python loop, since steps are few: a slot that halts in one of these steps waits
    # for the next update, when it is refilled.
    for i in range(fields.steps_per_update):
      steps = steps + jnp.sum(~pool.halted_B)
      pool, step_loss, step_sums, each = _supervise(
          model, fields, params, pool, rows_BE, jax.random.fold_in(rng, i))
      total = total + step_loss / fields.steps_per_update
      sums = {name: sums[name] + value if sums else value for name, value in step_sums.items()}
      # The newest finished puzzle of each slot, kept over updates, so that recent/* exists at every update.
      finished = {name: jnp.where(each["done"], each[name], old) for name, old in finished.items()}
    sums = {name: value / fields.steps_per_update if name.endswith("_loss") else value
            for name, value in sums.items()}
    known_B = finished["steps"] != NEVER
    recent = {name: jnp.sum(jnp.where(known_B, value_B, 0)) for name, value_B in finished.items()}
    means = {"recent/known": jnp.mean(known_B.astype(jnp.float32)),
             # Over all slots: averages by weight over pieces of a batch then stay proportional, and `finish`
             # divides by the fraction of slots that finished.
             **{f"train/{name}": value / size for name, value in sums.items()},
             **{f"recent/{name}": value / size for name, value in recent.items()}}
    weight = jnp.asarray(size * fields.steps_per_update, jnp.float32)
    return LossOut((total / size).astype(jnp.float32), weight, Carry(pool, finished), means,
                   jnp.asarray(steps, jnp.float32))

  return loss


def _supervise(model: trm.TRM, fields, params, pool: act.Pool, rows_BE, rng):
  """Makes one supervision step; slots that halted earlier in this update keep their state, uncounted."""
  apply: Any = lambda params, latents: model.apply({"params": params}, pool.inputs_BT, rows_BE, latents)
  out = apply(params, pool.latents)
  waiting_B = pool.halted_B
  proceed = {"continue_logit_B": out.continue_logit_B} if fields.train_continue else {}
  steps_B, halted_B = act.halt(pool.steps_B, out.halt_logit_B, rng, n_supervision=fields.n_supervision,
                               explore_prob=fields.explore_prob, **proceed)
  # The target of the continue logit is the value of one more step (Wang et al. 2025), without gradient. It
  # costs a second forward pass, which is why TRM goes without.
  if fields.train_continue:
    later = apply(jax.lax.stop_gradient(params), out.latents)
    proceed["continue_target_B"] = act.continue_target(later.halt_logit_B, later.continue_logit_B,
                                                       steps_B >= fields.n_supervision)
  # Waiting slots are made unlabelled, which takes them out of the token loss; with several steps per update
  # skip_unlabelled keeps them out of the halting losses as well. With one step none waits.
  labels_BT = jnp.where(waiting_B[:, None], -100, pool.labels_BT)
  total, sums = recursion.recursion_loss(
      out.logits_BTV, out.halt_logit_B, labels_BT, halted_B=halted_B, steps_B=steps_B,
      token_loss=fields.token_loss, dtype=fields.loss_dtype, skip_unlabelled=fields.steps_per_update > 1,
      **proceed)
  each = recursion.of_each(out.logits_BTV, out.halt_logit_B, labels_BT, steps_B=steps_B)
  each["done"] = halted_B & each.pop("labelled")

  def keep(new, old):
    return jnp.where(waiting_B.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

  latents = jax.tree.map(keep, out.latents, pool.latents)
  pool = pool._replace(latents=latents, steps_B=keep(steps_B, pool.steps_B), halted_B=halted_B | waiting_B)
  return pool, total, sums, each


def finish_of(batch_rows: int):
  """Makes the function that turns means over slots into metrics; see `recipes.Accounting`.

  train/count is how many slots finished a puzzle in this update; some metrics are over these, and NaN where
  there is none. recent/* is of every slot's last finished puzzle, whenever that was.
  """
  def finish(means: dict) -> dict:
    means = dict(means)
    # recent/known becomes a divisor and no metric; train/count is both.
    known = {"train": means["train/count"], "recent": means.pop("recent/known")}
    over = {f"{group}/{name}": means[f"{group}/{name}"] / fraction for group, fraction in known.items()
            for name in OVER_FINISHED}
    return {**means, **over, "train/count": known["train"] * batch_rows}

  return finish


def evals_of(config, model: trm.TRM, sets: puzzle_sets.Sets, mesh) -> dict:
  """The evaluation of a run, as it goes and at its end: on ARC by votes, else by exact accuracy."""
  fields = config.puzzle_eval
  solve = solver.make(model, lambda: puzzle_sets.eval_batches_of(config, sets), mesh,
                      solve_options_of(config))
  if sets.kind == "arc":
    def name_of(result):
      return sets.test.names[result.id]

    page = pictures.make_page("arc", sets.shape, name_of, crop=grids.crop)
    run = evaluation.make(
        solve, evaluation.Grids(grids.parse_name, grids.crop, grids.undo), names=sets.test.names,
        tasks=sets.tasks, leaked=sets.leaked, rule=fields.vote, whole=fields.max_examples is None,
        batch_rows=config.eval.batch_rows, n_pictures=fields.pictures, page=page,
        record=step_answers_of(config, model, sets, mesh, name_of))
  else:
    def name_of(result):
      return puzzle_name(sets.test, int(sets.test.puzzles_of(result.example)))

    page = pictures.make_page(sets.kind, sets.shape, name_of)
    run = accuracy.make(solve, batch_rows=config.eval.batch_rows, n_pictures=fields.pictures, page=page,
                        record=step_answers_of(config, model, sets, mesh, name_of),
                        trained_on=sets.trained_on)
  return {"puzzles": Eval(run, "every")}


def step_answers_of(config, model: trm.TRM, sets: puzzle_sets.Sets, mesh, name_of: Callable) -> Callable:
  """Makes the function that records the answers to drawn puzzles step by step; see `step_answers.make`."""
  trace = tracing.make(model, n_supervision=config.supervision.n_supervision,
                       token_loss=config.supervision.token_loss, mesh=mesh)
  # Half of the pictures are of solved puzzles, and an odd number is rounded up.
  rows = 2 * -(-config.puzzle_eval.pictures // 2)
  return step_answers.make(trace, sets.kind, sets.shape, name_of, rows=rows,
                           crop=grids.crop if sets.kind == "arc" else None)


def solve_options_of(config) -> solver.SolverOptions:
  """Returns how a config's held-out puzzles are worked on."""
  fields = config.puzzle_eval
  supervision = config.supervision
  return solver.SolverOptions(
      batch_rows=config.eval.batch_rows, n_supervision=supervision.n_supervision, mode=fields.mode,
      halt_threshold=fields.halt_threshold, n_trajectories=fields.n_trajectories, noise_std=fields.noise_std,
      max_examples=fields.max_examples, token_loss=supervision.token_loss, loss_dtype=supervision.loss_dtype,
      seed=config.seed)
