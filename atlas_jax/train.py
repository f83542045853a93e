"""The one training loop: it knows a recipe's four fields and nothing else of the kind of training."""
import dataclasses
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging

from atlas_jax import state as states
from atlas_jax import tree
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.monitor import profile, report
from atlas_jax.monitor.clock import Clock
from atlas_jax.monitor.progress import Progress
from atlas_jax.monitor.writer import MetricsWriter
from atlas_jax.optim import build as optim
from atlas_jax.parallel import hosts, place
from atlas_jax.recipes import LossOut, Recipe
from atlas_jax.state import TrainState


class NonFiniteError(RuntimeError):
  """Loss or gradients were not finite too many times in a row."""


class LostPeerError(RuntimeError):
  """Another process of the run died."""


# ------------------------------------------------------------------------------------------------- one update


class Sums(NamedTuple):
  """What pieces of a batch add up to; each piece weighs by its counted tokens."""

  grads: Any
  weight: jax.Array
  nats: jax.Array
  metrics: dict


def gradients(loss, state: TrainState, batch, frozen, parts: int) -> tuple[Any, LossOut]:
  """Differentiates the mean loss of a batch, in `parts` pieces of rows one after another.

  Returns:
    (grads, LossOut): gradients and loss per counted token of the whole batch, whatever the pieces.
  """
  rng = jax.random.fold_in(state.rng, state.step)

  def piece(index, batch, carry):
    def total(params):
      out = loss(params, batch, frozen=frozen, carry=carry, rng=jax.random.fold_in(rng, index))
      return out.loss * out.weight, out

    grads, out = jax.grad(total, has_aux=True)(state.params)
    weighted = jax.tree.map(lambda m: m * out.weight, out.metrics)
    return Sums(grads, out.weight, out.loss * out.weight, weighted), out.carry

  if parts == 1:
    sums, carry = piece(0, batch, state.carry)
  else:
    # Piece i takes rows i, i + parts, ...: every device keeps its own rows.
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
    pieces = (jnp.arange(parts), *jax.tree.map(split, (batch, state.carry)))
    shapes = jax.eval_shape(piece, *jax.tree.map(lambda x: x[0], pieces))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(so_far, xs):
      sums, carry = piece(*xs)
      return jax.tree.map(jnp.add, so_far, sums), carry

    sums, carry = jax.lax.scan(body, zeros, pieces)
    carry = jax.tree.map(join, carry)
  mean = lambda x: x / jnp.maximum(sums.weight, 1).astype(x.dtype)
  return jax.tree.map(mean, sums.grads), LossOut(mean(sums.nats), sums.weight, carry,
                                                 jax.tree.map(mean, sums.metrics))


def make_step(config, recipe: Recipe, params_abstract):
  """Makes the function that turns one batch into one update.

  Returns:
    (state, batch, frozen, stop) -> (state, metrics), to be jitted with the state donated. A batch whose loss or
    gradient is not finite leaves parameters, optimizer and carry as they were, and is counted.
  """
  optimizer = optim.build(params_abstract, **config.optim)
  rate = optim.learning_rate(**config.optim)
  keep = config.optim.ema_decay

  def step(state: TrainState, batch, frozen, stop):
    grads, out = gradients(recipe.loss, state, batch, frozen, config.train.accumulate_steps)
    norm = tree.global_norm(grads)
    good = jnp.isfinite(out.loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = () if keep is None else jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state.ema, params)
    new = (params, opt_state, jax.lax.stop_gradient(out.carry), ema)
    old = (state.params, state.opt_state, state.carry, state.ema)
    params, opt_state, carry, ema = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    bad = 1 - good.astype(jnp.int32)
    after = TrainState(state.step + 1, params, opt_state, carry, ema, state.rng, state.skipped + bad,
                       (state.skipped_in_row + bad) * bad)
    ratios = tree.update_to_weight_ratio(updates, state.params)
    metrics = {
        **out.metrics,
        "train/loss_nats": out.loss,
        "train/step_tokens": out.weight,
        "train/lr": rate(state.step - state.skipped),
        "train/skipped_updates": after.skipped,
        "train/skipped_in_row": after.skipped_in_row,
        "grad/norm": norm,
        **{f"grad/norm/{name}": value for name, value in tree.group_norms(grads).items()},
        **{f"update/to_weight_ratio/{name}": value for name, value in ratios.items()},
        "stop": jnp.sum(stop),
    }
    return after, metrics

  return step


# --------------------------------------------------------------------------------------------- what a run holds


@dataclasses.dataclass
class Progressed:
  """What the host counts beside the state; saved with every checkpoint."""

  step: int = 0
  tokens_seen: int = 0
  seconds: float = 0.0
  resumed_from_step: int | None = None


class Run(NamedTuple):
  """The parts of a run at work."""

  config: Any
  recipe: Recipe
  mesh: Any
  workdir: pathlib.Path
  saver: Checkpoints
  writer: MetricsWriter
  progressed: Progressed


def abstract_state(config, recipe: Recipe, mesh) -> tuple[TrainState, Any]:
  """Returns shapes and shardings of the train state, and of the frozen parameters, without computing them."""
  state = states.abstract(mesh, *_state_args(config, recipe))
  frozen = jax.eval_shape(lambda: recipe.init(jax.random.key(config.seed)).frozen)
  return state, states.with_shardings(frozen, place.shardings(mesh, frozen))


def _state_args(config, recipe: Recipe):
  return (recipe.init, lambda params: optim.build(params, **config.optim), config.optim.ema_decay, config.seed)


def _frozen(config, recipe: Recipe, abstract):
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(lambda: recipe.init(jax.random.key(config.seed)).frozen, out_shardings=shardings)()


def _start(config, recipe: Recipe, mesh, saver: Checkpoints, progressed: Progressed) -> TrainState:
  """Restores the newest checkpoint with the source's place, or makes the first state."""
  abstract, _ = abstract_state(config, recipe, mesh)
  if saver.latest_step() is None:
    return states.build(abstract, *_state_args(config, recipe))
  state, meta = saver.restore(abstract)
  recipe.source.restore(meta["source"])
  progressed.step = progressed.resumed_from_step = int(meta["step"])
  progressed.tokens_seen, progressed.seconds = int(meta["tokens_seen"]), float(meta["seconds"])
  logging.info("resumed from step %d in %s", progressed.step, saver.path)
  return state


# -------------------------------------------------------------------------------------------------------- a run


def run(config, recipe: Recipe, mesh, workdir) -> dict:
  """Trains until config.optim.steps, from the newest checkpoint of the workdir if there is one.

  Args:
    config: resolved.
    recipe: what kind of training; see `recipes.load`.
    mesh: all devices; see `parallel.mesh.make`.
    workdir: gets config.json, metrics.jsonl, TensorBoard events, checkpoints, report.png, summary.json.

  Returns:
    The summary, or {} if the run was asked to stop; the same call then goes on with it.

  Raises:
    NonFiniteError: after config.train.skip_limit batches in a row without a finite loss and gradient.
    CheckpointError: if the newest checkpoint is damaged or of another model.
  """
  workdir = pathlib.Path(workdir)
  saver = Checkpoints(workdir, **config.checkpoint)
  progressed = Progressed()
  state = _start(config, recipe, mesh, saver, progressed)
  _, frozen_abstract = abstract_state(config, recipe, mesh)
  frozen = _frozen(config, recipe, frozen_abstract)
  writer = MetricsWriter(workdir, tensorboard=config.monitor.tensorboard, resume_step=progressed.step)
  run_ = Run(config, recipe, mesh, workdir, saver, writer, progressed)
  try:
    with hosts.StopFlag(mesh) as stop:
      state, stopped = _updates(run_, state, frozen, stop)
    summary = {} if stopped else _finish(run_, state)
  except Exception as error:
    if hosts.lost_peer(error):  # Closing would wait for the process that is gone.
      raise LostPeerError(f"another process of this run died after step {progressed.step}; newest good checkpoint: "
                          f"{saver.newest_good() or 'none'}; the same command goes on from there") from error
    _close(run_)
    raise
  _close(run_)
  return summary


def _close(run_: Run) -> None:
  run_.writer.close()
  run_.saver.close()
  if hasattr(run_.recipe.source, "close"):
    run_.recipe.source.close()


def model_flops(recipe: Recipe, state: TrainState, frozen, batch) -> float:
  """Counts the FLOPs of one update: a backward pass is twice the forward pass, recomputation does not count."""

  def forward(params, batch, carry):
    return recipe.loss(params, batch, frozen=frozen, carry=carry, rng=jax.random.key(0)).loss

  return 3.0 * profile.matmul_flops(forward, state.params, batch, state.carry)


def _updates(run_: Run, state: TrainState, frozen, stop) -> tuple[TrainState, bool]:
  """Makes updates until the end or until the run is asked to stop; says which."""
  config, recipe, progressed = run_.config, run_.recipe, run_.progressed
  step = jax.jit(make_step(config, recipe, jax.eval_shape(lambda x: x, state.params)), donate_argnums=0)
  clock, pending, stopped = Clock(profile.run_peak_flops(run_.mesh.devices.flatten())), None, False
  with Progress(config.optim.steps, progressed.step, enabled=config.monitor.progress) as bar:
    while progressed.step < config.optim.steps and not stopped:
      batch = hosts.global_batch(run_.mesh, recipe.source.next(state.params))
      if clock.flops_per_step is None:
        clock.flops_per_step = model_flops(recipe, state, frozen, batch)
      with clock.compiled():
        state, metrics = step(state, batch, frozen, stop.array())
      progressed.step += 1
      # The host reads the step before this one while the device works on this one.
      stopped = pending is not None and _observe(run_, *pending, clock, bar)
      pending = (progressed.step, metrics)
      if not stopped and _due(progressed.step, config):
        stopped, pending = _observe(run_, *pending, clock, bar), None
        _evaluate_and_save(run_, state)
        clock.restart()
    if pending is not None:
      _observe(run_, *pending, clock, bar)
  stopped = stopped and progressed.step < config.optim.steps
  if run_.saver.latest_step() != progressed.step:
    run_.saver.save(progressed.step, state, _meta(run_))
  run_.saver.wait()
  if stopped:
    logging.warning("stopped at step %d, saved in %s; the same command goes on from there", progressed.step,
                    run_.saver.path)
  return state, stopped


def _due(step: int, config) -> bool:
  every = (config.checkpoint.every_steps, config.train.eval_every_steps)
  return step < config.optim.steps and any(n and step % n == 0 for n in every)


def _observe(run_: Run, step: int, metrics, clock, bar) -> bool:
  """Reads a step's metrics, counts, logs; says whether all processes agreed to stop."""
  config, progressed = run_.config, run_.progressed
  with clock.compiled():
    row = {name: value.item() for name, value in jax.device_get(metrics).items()}
  stop = hosts.StopFlag.agreed(row.pop("stop"))
  tokens = int(row.pop("train/step_tokens"))
  progressed.tokens_seen += tokens
  clock.add(tokens)
  bar.update(step, loss=row["train/loss_nats"], tokens_per_s=clock.tokens_per_s)
  if row["train/skipped_in_row"]:
    logging.warning("step %d: loss %s, gradient norm %s: update skipped, batch from %s", step,
                    row["train/loss_nats"], row["grad/norm"], "; ".join(run_.recipe.source.provenance(step - 1)))
  if row["train/skipped_in_row"] >= config.train.skip_limit:
    raise NonFiniteError(_non_finite(run_, step, row))
  if step % config.train.log_every_steps == 0 or step == config.optim.steps:
    progressed.seconds += clock.seconds
    run_.writer.write(step, {**row, "train/tokens_seen": progressed.tokens_seen, **clock.row()})
    clock.restart()
  return stop


def _non_finite(run_: Run, step: int, row: dict) -> str:
  name = "grad/norm" if jnp.isfinite(row["train/loss_nats"]) else "train/loss_nats"
  good = run_.saver.newest_good()
  return (f"step {step}: {name} was not finite in {row['train/skipped_in_row']} batches in a row "
          f"(config.train.skip_limit); last batch from {'; '.join(run_.recipe.source.provenance(step - 1))}; last "
          f"good checkpoint: {good or 'none'}. Lower config.optim.lr or config.model.memory.write_rate_max")


# ---------------------------------------------------------------------------------------- evaluations and the end


def _meta(run_: Run) -> dict:
  progressed = run_.progressed
  return {"step": progressed.step, "source": run_.recipe.source.state(), "tokens_seen": progressed.tokens_seen,
          "seconds": progressed.seconds}


def evaluate(config, recipe: Recipe, params, *, step: int, when: tuple[str, ...] = ("every", "end")):
  """Runs a recipe's evaluations.

  Args:
    params: on the mesh the evaluations were made for; the moving average where a run keeps one.
    step: updates the parameters have seen.
    when: which evaluations: "every" (those made as the run goes), "end".

  Returns:
    (scalars, texts): numbers by metric name, and what there is to read.
  """
  del config
  scalars, texts = {}, []
  for found in recipe.evals.values():
    if found.when in when:
      out = found.run(params, step=step)
      scalars.update(out.scalars)
      texts.extend([out.text] if out.text else [])
  return scalars, texts


def _eval_params(state: TrainState):
  return state.params if isinstance(state.ema, tuple) else state.ema


def _evaluate_and_save(run_: Run, state: TrainState) -> None:
  config, progressed = run_.config, run_.progressed
  scalars: dict = {}
  every = config.train.eval_every_steps
  if every and progressed.step % every == 0:
    scalars, _ = evaluate(config, run_.recipe, _eval_params(state), step=progressed.step, when=("every",))
    run_.writer.write(progressed.step, {**scalars, "train/tokens_seen": progressed.tokens_seen})
  if scalars or progressed.step % config.checkpoint.every_steps == 0:
    run_.saver.save(progressed.step, state, _meta(run_), {_summary_name(k): v for k, v in scalars.items()} or None)


def _finish(run_: Run, state: TrainState) -> dict:
  """Evaluates the last parameters and writes what a run leaves behind."""
  config, progressed = run_.config, run_.progressed
  scalars, texts = evaluate(config, run_.recipe, _eval_params(state), step=progressed.step)
  run_.writer.write(progressed.step, {**scalars, "train/tokens_seen": progressed.tokens_seen})
  if not hosts.is_main():
    return {}
  rows = report.read_metrics(run_.workdir)
  summary = {
      "params": tree.count(state.params), "steps": progressed.step, "tokens_seen": progressed.tokens_seen,
      "train_loss_nats": report.last_mean(rows, "train/loss_nats"),
      **{_summary_name(name): value for name, value in scalars.items()},
      "tokens_per_s": report.median(rows, "perf/tokens_per_s"),
      "step_s": report.median(rows, "perf/step_s"),
      "in_step_frac": report.median(rows, "perf/in_step_frac"),
      "model_flops_per_s": report.median(rows, "perf/model_flops_per_s"),
      "flops_fraction_of_peak": report.median(rows, "perf/flops_fraction_of_peak"),
      "resumed_from_step": progressed.resumed_from_step, "seconds": round(progressed.seconds, 1),
  }
  (run_.workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  for text in texts:
    run_.writer.write_text(progressed.step, "eval/sample", text)
    print(text, flush=True)
  report.write_report(run_.workdir)
  return summary


def _summary_name(metric: str) -> str:
  return metric.removeprefix("eval/").replace("/", "_")
