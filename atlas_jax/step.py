"""One update: gradients of a batch, optimizer, moving average, tables; none if a number is not finite."""
import functools

import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.monitor import group_norms, profile
from atlas_jax.optim import accumulate, freeze, precision
from atlas_jax.optim import build as optim
from atlas_jax.parallel import by_rows
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import Recipe
from atlas_jax.state import TrainState


# In `step` below, one number stands for all gradients: a NaN or infinity in any of them makes the norm one.
# The carry is checked as well, since it would spoil the batches to come. A skipped update keeps the old state
# bit for bit; it is selected by `where`, as a product with 0 leaves a NaN a NaN. The step counts skipped
# batches too, and keys follow from the root key and the step alone: a run that goes on draws what it would
# have drawn, and a batch behind a skipped one has a key of its own.
def make_step(config, recipe: Recipe, params_abstract):
  """Makes the function that turns one batch into one update.

  Returns:
    (state, batch, frozen, stop) -> (state, metrics), to be jitted with the state donated. A batch that gives
    a loss, gradient or carry that is not finite leaves parameters, optimizer, average, carry and tables as
    they were, and is counted.
  """
  optimizer = optim.build(params_abstract, **config.optim)
  rate = optim.learning_rate(**config.optim)
  keep = config.optim.ema_decay
  frozen_params = freeze.mask(params_abstract, config.optim.freeze)
  access = recipe.update.tables
  def step(state: TrainState, batch, frozen, stop):
    rows = () if access is None else access.rows(state.tables, batch, state.carry)
    rng = jax.random.fold_in(state.rng, state.step)
    (grads, row_grads), out = accumulate.gradients(
        loss_at(recipe, state.step), state.params, batch, state.carry,
        frozen=frozen_for_loss(recipe, state, frozen), rows=rows, rng=rng,
        parts=config.train.accumulate_steps)
    grads = freeze.without_frozen(grads, frozen_params)  # Before the norm, which is of what is trained.
    norm = tree.global_norm(grads)
    finite = jnp.isfinite(out.loss) & jnp.isfinite(norm) & tree.all_finite((out.carry, row_grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = precision.apply_updates(state.params, updates, rng)
    ema = _next_ema(state.ema, params, keep, frozen_params)
    new = (params, opt_state, jax.lax.stop_gradient(out.carry), ema)
    old = (state.params, state.opt_state, state.carry, state.ema)
    params, opt_state, carry, ema = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    lr, bad = rate(state.step - state.skipped), 1 - finite.astype(jnp.int32)  # As the optimizer counts.
    tables = _update_tables(recipe, state, batch, row_grads, finite, scale=lr / config.optim.lr)
    after = TrainState(state.step + 1, params, opt_state, carry, ema, state.rng, state.skipped + bad,
                       (state.skipped_in_row + bad) * bad, tables, update_reference(recipe, state, params))
    ratios = tree.update_to_weight_ratio(updates, state.params)
    by_group = group_norms.of_update(grads, updates, state.params) if config.monitor.group_norms else {}
    metrics = {
        **recipe.accounting.finish(out.metrics), **by_group,
        **_loss_metrics(recipe, out),
        "train/skipped_updates": after.skipped, "train/skipped_in_row": after.skipped_in_row,
        "train/lr": lr, "grad/norm": norm,
        **({} if access is None else {"grad/norm_tables": tree.global_norm(row_grads)}),
        "update/changed_frac": tree.changed_frac(state.params, params),
        "update/largest_change": tree.largest_change(state.params, params),
        **{f"grad/norm/{name}": value for name, value in tree.group_norms(grads).items()},
        **{f"update/to_weight_ratio/{name}": value for name, value in ratios.items()},
        "stop": jnp.sum(stop),  # All processes read the same sum, see `hosts.StopFlag`.
    }
    return after, metrics

  return step


def _loss_metrics(recipe: Recipe, out) -> dict:
  unit = recipe.accounting.unit
  has_perplexity = unit == "tokens" and recipe.accounting.is_mean_nll
  return {
      "train/loss_nats": out.loss,
      **({"train/perplexity": jnp.exp(out.loss)} if has_perplexity else {}),
      f"train/step_{unit}": out.weight if out.seen is None else out.seen,
      f"train/counted_{unit}": out.weight,
  }


def _next_ema(average, params, keep: float | None, frozen_params):
  """Returns the moving average after an update, frozen parameters as they are; () where there is none."""
  if keep is None:
    return ()
  return freeze.kept_equal(ema_update(average, params, keep), params, frozen_params)


def ema_update(average, params, keep: float):
  """Moves an average towards the parameters: keep of the old, 1 - keep of the new."""
  return jax.tree.map(lambda a, b: keep * a + (1 - keep) * b.astype(a.dtype), average, params)


def loss_at(recipe: Recipe, step):
  """Returns the loss function of an update, with the arguments that follow from the update's number."""
  by_step = recipe.update.by_step
  return recipe.loss if by_step is None else functools.partial(recipe.loss, **by_step(step))


def frozen_for_loss(recipe: Recipe, state: TrainState, frozen):
  """Returns what the loss sees as frozen: with the state's anchor as the reference, where there is one."""
  return frozen if recipe.update.reference is None else {**(frozen or {}), "reference": state.anchor}


def update_reference(recipe: Recipe, state: TrainState, params):
  """Returns the reference after an update: nearer to the new parameters every so often."""
  reference = recipe.update.reference
  if reference is None:
    return state.anchor
  weight = jnp.where((state.step + 1) % reference.every_steps == 0, reference.weight, 0.0)

  def mix(old, new):
    return ((1 - weight) * old + weight * new).astype(old.dtype)

  return jax.tree.map(mix, state.anchor, params)


def _update_tables(recipe: Recipe, state: TrainState, batch, row_grads, finite, *, scale):
  """Changes the rows of the batch in place; a select over whole tables would copy them."""
  tables = recipe.update.tables
  if tables is None:
    return state.tables
  grads = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), row_grads)
  return tables.update(state.tables, batch, state.carry, grads, scale=jnp.where(finite, scale, 0.0))


def jit_step(config, recipe: Recipe, mesh, state):
  """Compiles `make_step` for states placed like this one, which it donates; metrics are whole everywhere."""
  # Shapes alone: parameters in the closure would be constants of the program, and a second copy in memory.
  update = make_step(config, recipe, jax.eval_shape(lambda x: x, state.params))

  def step(*args):
    with by_rows.over(mesh, meshes.ROW_AXES):
      return update(*args)

  # Without shardings of its own the compiler could place the new state otherwise than the old one.
  placed = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(placed, meshes.replicated(mesh)))


def model_flops(recipe: Recipe, state: TrainState, frozen, batch) -> float:
  """Counts the FLOPs of an update: backward is twice forward, and recomputation does not count."""
  def forward(params, batch, carry, tables):
    access = recipe.update.tables
    given = {} if access is None else {"rows": access.rows(tables, batch, carry)}
    return recipe.loss(params, batch, frozen=frozen_for_loss(recipe, state, frozen), carry=carry,
                       rng=jax.random.key(0), **given).loss

  flops = profile.matmul_flops(forward, state.params, batch, state.carry, state.tables)
  # A product has two more in the backward pass, one for the gradient of each of its factors.
  return (1.0 + 2.0 * recipe.accounting.backward_frac) * flops
