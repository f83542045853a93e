"""Builds runs that are quick and still have every part, and sources that make something happen in one."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax import config as configs
from atlas_jax import recipes, train
from atlas_jax.monitor import schema
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import LossOut, Recipe
from atlas_jax.state import Init
from configs import memory_40m, trm_sudoku


def one_device():
  """The mesh of a single device."""
  return meshes.make(devices=jax.devices()[:1])


def rows_of(workdir):
  """The rows of a run's metrics without what a clock measured, and the version that the first one names."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  timed = ("perf/", "system/", "metrics_version")
  return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]


def check_names(workdir):
  """Checks that the schema has every metric that a run wrote."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert not (unknown := schema.unknown(name for row in rows for name in row)), unknown


def saved(config, recipe, workdir, *, mesh=None, step=None):
  """The train state of a run's newest checkpoint, or of a step."""
  abstract, _ = train.abstract_state(config, recipe, mesh or one_device())
  saver = train.Checkpoints(workdir, **config.checkpoint, read_only=True)
  return saver.restore(abstract, step)[0]


# --- a recipe whose step compiles in a second: it predicts numbers from numbers ---


def toy_config(**changes):
  """A resolved config of three rows; `changes` by dotted name, with __ for dots."""
  config = memory_40m.get_config("smoke,pretrain")
  config.data.batch_rows = 6
  config.optim.update(steps=6, warmup_steps=3, lr=0.1)
  config.monitor.update(tensorboard=False, report=False)
  return changed(config, changes)


def changed(config, changes):
  """Sets fields by dotted name, with __ for dots, and resolves; a model of another kind is tiny."""
  if (kind := changes.get("model__kind", config.model.kind)) != config.model.kind:
    config.model.kind = kind
    configs.shrink_model(config)
  for name, value in changes.items():
    *groups, field = name.split("__")
    group = config
    for each in groups:
      group = group[each]
    group[field] = value
  return configs.resolve(config)


class ToySource:
  """Random numbers, a batch for each step; rows count unequally. `before(step)` is called first."""

  def __init__(self, rows, *, before=lambda step: None, bad=()):
    self.step, self.rows, self.before, self.bad = 0, rows, before, dict(bad)

  def next(self, trained):
    """Returns the batch of the next update."""
    self.step += 1
    self.before(self.step)
    draw = np.random.default_rng(self.step)
    weight_BT = (np.arange(4)[None] <= np.arange(self.rows)[:, None] % 4).astype(np.float32)
    bad_B = np.full(self.rows, {"": 0, "loss": 1, "grad": 2, "carry": 3}[self.bad.get(self.step, "")])
    return {
      "x_BTD": draw.normal(size=(self.rows, 4, 3)).astype(np.float32),
      "weight_BT": weight_BT,
      "bad_B": bad_B.astype(np.int32),
    }

  def state(self):
    """Returns the place."""
    return {"step": self.step}

  def restore(self, state):
    """Goes to a place."""
    self.step = state["step"]

  def provenance(self, step):
    """Names the batch."""
    return [f"numbers@{step}"]


def toy_recipe(config, *, evals=(), **source):
  """A recipe with frozen parameters and a carry; a batch's mark makes its loss, gradient or carry NaN."""

  def init(rng):
    params = {"embed": jax.random.normal(rng, (3,)), "mlp": {"bias": jnp.zeros(())}}
    return Init(params, frozen=params, carry={"mean_B": jnp.zeros((config.data.batch_rows,))})

  def loss(params, batch, *, frozen, carry, rng):
    bad = batch["bad_B"][0]
    seen_BT = batch["x_BTD"] @ (params["embed"] - 2 * frozen["embed"])
    error_BT = seen_BT + params["mlp"]["bias"] + carry["mean_B"][:, None]
    error_BT = error_BT + 1e-3 * jax.random.normal(rng, ())
    weight = jnp.sum(batch["weight_BT"])
    mean = jnp.sum(batch["weight_BT"] * error_BT**2) / weight
    mean = jnp.where(bad == 1, jnp.nan, mean)
    zero = jnp.where(bad == 2, 0 * params["mlp"]["bias"], 1.0)  # The gradient of the root of 0 is infinite.
    mean = mean + jnp.sqrt(zero) - jnp.where(bad == 2, 0.0, 1.0)
    mean_B = jnp.where(bad == 3, jnp.nan, jnp.tanh(jnp.mean(error_BT, axis=1)))
    return LossOut(mean, weight, {"mean_B": mean_B}, {"toy/first": jnp.mean(mean_B)})

  return Recipe(init, loss, ToySource(config.data.batch_rows, **source), dict(evals))


def ask_to_stop():
  """Sends this process the signal that asks a run to stop."""
  os.kill(os.getpid(), signal.SIGTERM)


# --- the language model, as small as it gets ---


def write_corpus(folder, *, seed=0, files=16):
  """Writes texts of 40 to 400 bytes of made-up words, so that some go on over many segments."""
  folder.mkdir(parents=True, exist_ok=True)
  draw = np.random.default_rng(seed)
  words = ["".join(draw.choice(list("abcdefgh"), size=size)) for size in draw.integers(2, 7, size=40)]
  for n in range(files):
    text = " ".join(draw.choice(words, size=draw.integers(10, 100)))
    (folder / f"{n:02}.txt").write_text(text + "\n")
  return folder


# Episodes that fit the texts of `write_corpus`; the floor is that of the last phase.
EPISODES = {"data__segment_len": 256, "episode__tasks": "key_value:3,passkey", "episode__most_items": 2,
            "episode__least_distance": 16, "episode__curriculum_steps": 2, "eval__episode_items": "1,2",
            "eval__episode_distances": "32,64", "eval__task_samples": 2}


def lm_config(corpus, **changes):
  """A resolved config of a model of 34 thousand parameters; `changes` as in `toy_config`."""
  config = memory_40m.get_config("smoke,pretrain")
  config.data.update(name="files", path=str(corpus), cache_dir=str(corpus) + "_cache", held_out_frac=0.3)
  config.data.update(segment_len=32, batch_rows=4)
  config.model.update(width=32, ff_width=64, window_tokens=8)
  config.model.memory.update(key_dim=8, value_dim=8, chunk_size=8)
  config.optim.update(steps=10, warmup_steps=4)
  config.checkpoint.update(every_steps=100)
  config.eval.update(batch_rows=4, max_tokens=512, gain_max_tokens=256, sample_tokens=0)
  config.monitor.update(tensorboard=False, report=False)
  return changed(config, changes)


def puzzle_config(folder, variant="4x4,smoke", **changes):
  """A resolved config of a recursive model of a few thousand parameters; boards are kept beside `folder`."""
  config = trm_sudoku.get_config(variant)
  config.data.update(cache_dir=str(folder) + "_cache", batch_rows=6)
  config.monitor.update(tensorboard=False, report=False)
  return changed(config, changes)


class Watched:
  """A source that calls `before(step)` before it gives the batch of an update."""

  def __init__(self, source, before):
    self.source, self.before = source, before

  def next(self, trained):
    """Returns the next batch, after the call."""
    self.before(self.source.step + 1)
    return self.source.next(trained)

  def __getattr__(self, name):
    return getattr(self.source, name)


def run_lm(config, workdir, *, mesh=None, stop_at=None, evals=False):
  """Runs a config; asks it to stop while the batch of an update is made; evaluates only if told to."""
  mesh = mesh or one_device()
  recipe = recipes.load(config, mesh, workdir)
  before = lambda step: ask_to_stop() if step == stop_at else None
  recipe = recipe._replace(
    source=Watched(recipe.source, before), evals=recipe.evals if evals else {}
  )
  summary = train.run(config, recipe, mesh, workdir)
  check_names(workdir)
  return summary
