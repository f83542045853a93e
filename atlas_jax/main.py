"""The program: reads flags, joins the processes of a run, and trains, evaluates or generates.

  python -m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart
  python -m atlas_jax.main --mode=eval --workdir=runs/quickstart
  python -m atlas_jax.main --mode=generate --workdir=runs/quickstart --prompt="def " --tokens=200
"""
import functools
import json
import os
import sys

import jax
from absl import flags, logging
from ml_collections import config_flags

from atlas_jax import config as configs
from atlas_jax import recipes, train
from atlas_jax.checkpoint import CheckpointError, Checkpoints
from atlas_jax.evals import Eval, sample
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import memory_lm
from atlas_jax.serve import engine

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A file of configs/, with :ARGUMENTS; single fields by "
                                "--config.GROUP.FIELD=VALUE.", lock_config=True)
flags.DEFINE_string("workdir", None, "The run's directory.")
flags.DEFINE_enum("mode", "train", ["train", "eval", "generate"], "What to do.")
flags.DEFINE_string("prompt", "", "generate: the text to go on from.")
flags.DEFINE_integer("tokens", 200, "generate: how many tokens to add.")
flags.DEFINE_float("temperature", 0.8, "generate: 0 takes the likeliest token, higher is more random.")
flags.DEFINE_integer("top_k", None, "generate: only this many likeliest tokens; none: all.")
flags.DEFINE_integer("seed", 0, "generate: draws the tokens.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for several processes.")
flags.DEFINE_integer("num_processes", None, "How many processes the run has.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def run_train(config, workdir: str) -> None:
  """Trains; a workdir that holds a run of the same settings goes on with it."""
  config = configs.resolve(config)
  mesh = meshes.make(**config.mesh)
  meshes.check_rows(mesh, config.data.batch_rows)
  recipe = with_sample(config, recipes.load(config, mesh), mesh)
  if hosts.is_main():
    configs.save(config, workdir)
  summary = train.run(config, recipe, mesh, workdir)
  if summary:
    print(json.dumps(summary, indent=2), flush=True)


def with_sample(config, recipe, mesh):
  """Adds a text sample to a recipe's evaluations, if the config asks for one."""
  if not config.eval.sample_tokens:
    return recipe
  model, tokenizer = memory_lm.model_of(config), recipe.source.tokenizer
  write = functools.partial(_write, model, tokenizer=tokenizer, mesh=mesh)
  run = sample.make(write, config.eval.sample_prompt, config.eval.sample_tokens)
  return recipe._replace(evals={**recipe.evals, "sample": Eval(run, "end")})


def _write(model, params, prompt, *, tokens, tokenizer, mesh):
  return engine.generate(model, params, tokenizer, prompt, tokens=tokens, temperature=0.8, seed=0, mesh=mesh)


def restored(workdir: str):
  """Opens a run to be used: (config, mesh, recipe, params, step)."""
  config = configs.load(workdir)
  mesh = meshes.make(**config.mesh) if _fits(config) else meshes.make()
  recipe = recipes.load(config, mesh)
  abstract, _ = train.abstract_state(config, recipe, mesh)
  field = "params" if isinstance(abstract.ema, tuple) else "ema"
  saver = Checkpoints(workdir, **config.checkpoint, read_only=True)
  try:
    params, meta = saver.restore_params(abstract.params, field=field)
  finally:
    saver.close()
  return config, mesh, recipe, params, int(meta["step"])


def _fits(config) -> bool:
  """Whether the devices here are those the run was made for; else all of them hold different rows."""
  sizes = [size for size in config.mesh.values() if size != -1]
  product = 1
  for size in sizes:
    product *= size
  return jax.device_count() % product == 0 and (len(sizes) < len(config.mesh) or product == jax.device_count())


def run_eval(workdir: str) -> None:
  """Evaluates a run's newest checkpoint and prints one JSON object."""
  config, _, recipe, params, step = restored(workdir)
  scalars, _ = train.evaluate(config, recipe, params, step=step)
  if hosts.is_main():
    print(json.dumps({"step": step, **scalars}), flush=True)


def run_generate(workdir: str) -> None:
  """Writes the prompt and what the model adds to it, as it comes."""
  config, mesh, recipe, params, _ = restored(workdir)
  pieces = engine.generate(memory_lm.model_of(config), params, recipe.source.tokenizer, FLAGS.prompt,
                           tokens=FLAGS.tokens, temperature=FLAGS.temperature, top_k=FLAGS.top_k, seed=FLAGS.seed,
                           mesh=mesh)
  print(FLAGS.prompt, end="", flush=True)
  for piece in pieces:
    print(piece, end="", flush=True)
  print()


def check_devices() -> None:
  """Refuses a platform that is asked for and not here.

  Raises:
    ValueError: names the platform and what to do.
  """
  try:
    jax.devices()
  except RuntimeError as error:
    asked = os.environ.get("JAX_PLATFORMS", "")
    raise ValueError(f"JAX_PLATFORMS={asked!r} asks for devices that are not here "
                     f"({str(error).splitlines()[0]}); install the extra for them (atlas_jax[cuda12], [cuda13] or "
                     "[tpu]), or unset JAX_PLATFORMS to take what there is") from None


def main() -> None:
  """Does what the flags say."""
  if FLAGS.workdir is None:
    raise ValueError("--workdir is missing: the directory of the run, such as --workdir=runs/quickstart")
  if FLAGS.mode == "train" and FLAGS.config is None:
    raise ValueError("--config is missing, such as --config=configs/memory_40m.py:cpu")
  hosts.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
  check_devices()
  if FLAGS.mode == "train":
    run_train(FLAGS.config, FLAGS.workdir)
  elif FLAGS.mode == "eval":
    run_eval(FLAGS.workdir)
  else:
    run_generate(FLAGS.workdir)


def parse(argv: list[str]) -> None:
  """Parses the command line.

  Raises:
    ValueError: says which flag or field is wrong, and the nearest known name.
  """
  try:
    rest = FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    raise ValueError(_said(error)) from None
  if len(rest) > 1:
    raise ValueError(f"{rest[1]!r} is no flag; flags are written --name=value")


def _said(error: Exception) -> str:
  """Gives what an error of a flag or a config file says, without the traceback that the flags library adds."""
  lines = [line for line in str(error).replace("\\'", "'").splitlines() if line.strip()]
  if any("Traceback" in line for line in lines):
    lines = [lines[0].split(": Error whilst")[0] + ": " + lines[-1].split(": ", 1)[-1]]
  words = " ".join(" ".join(lines).replace("\\n", " ").split())
  return f"no such field: {words}" if isinstance(error, AttributeError) else words


def entry() -> None:
  """Runs the program; what the caller can mend is one line on standard error, and exit code 1."""
  logging.use_absl_handler()
  # Libraries log every event of their own; of them only warnings are of use here.
  logging.get_absl_handler().addFilter(lambda record: record.levelname not in ("INFO", "DEBUG")
                                       or "atlas_jax" in record.pathname)
  try:
    parse(sys.argv)
    logging.set_verbosity(logging.INFO)
    main()
  except train.LostPeerError as error:
    print(f"atlas_jax: {error}", file=sys.stderr)
    hosts.leave(1)
  except (ValueError, TypeError, CheckpointError, train.NonFiniteError) as error:
    if FLAGS.is_parsed() and logging.vlog_is_on(1):
      raise
    print(f"atlas_jax: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  entry()
