"""The modes of the program, one function each, as notebooks call them too."""
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec

import jax
import ml_collections
from absl import flags, logging

from atlas_jax import closing, opening, readers, recipes, train, tree
from atlas_jax import config as configs
from atlas_jax.command import override, read_config
from atlas_jax.evals import Eval, recall, sample
from atlas_jax.handover import place, upload
from atlas_jax.language import assets, handed_over, runs
from atlas_jax.language.initial_model import load_initial_model, merge_frozen
from atlas_jax.monitor.alerts import live
from atlas_jax.optim import build as optim
from atlas_jax.parallel import agree, hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import LoadedParams, Trained
from atlas_jax.workdir import CHECKPOINTS, METRICS

WRITING = ("serve", "chat", "generate")  # Modes that write text and need nothing of a training.


def config_of_run(workdir: str, overrides: Mapping[str, str], *, evals: str | None = None,
                  mode: str | None = None) -> ml_collections.FrozenConfigDict:
  """Reads the config of a run; overrides change what is free to change.

  Args:
    workdir: of the run.
    overrides: dotted field -> its value as text.
    evals: what --evals names, in place of config.eval.tasks; None: what the run has.
    mode: of the program; one of `WRITING` uses a pretrained model's folder as well.

  Raises:
    ValueError: if the workdir holds no run, or an override would change the run itself or nothing at all.
  """
  if runs.is_pretrained(workdir):
    if mode not in WRITING:
      raise ValueError(f"--workdir={workdir} holds a pretrained model and no run: it writes text with --mode="
                       f"{', '.join(WRITING)}; a training starts from it with --config.model.path={workdir}")
    config = runs.config_of_pretrained(workdir)
  else:
    config = runs.config_of(workdir, given=overrides)
  if evals is not None:
    recall.chosen(evals, field="--evals")
    if config.recipe not in ("memory_lm", "episodic") and "." not in config.recipe:
      raise ValueError(f"--evals={evals} asks models of memory_lm and episodic, and {workdir} holds a run "
                       f"of config.recipe={config.recipe!r}; leave it out")
    config.eval.tasks = evals
  for name, text in overrides.items():
    # Refused whatever the value is, also the one that the run has: a command then means the same for every
    # run.
    if name in configs.FIELDS and not configs.is_free(name) or name.startswith(configs.OPTIONS):
      raise ValueError(f"--config.{name}={text} belongs to the run in {workdir} and cannot be changed; train "
                       "another one with it")
    if configs.is_of_training(name):
      raise ValueError(f"--config.{name}={text} is read by --mode=train alone; leave it out")
    override(config, name, text)
  readers.check(config, overrides, only=overrides)  # A run of an older version may hold others.
  return configs.resolve(config)


def run_train(config, workdir: str, *, began_s: float | None = None) -> dict:
  """Trains; a workdir that holds a run of the same settings goes on with it.

  Args:
    config: resolved.
    workdir: local.
    began_s: see `train.run`.

  Returns:
    what `train.run` gives: {} if the run was stopped.
  """
  mesh = meshes.make(**config.mesh)
  check_rows(config, mesh, ("data", "eval"))
  # Refuses wrong fields before data is read, which may be what tells the number of steps. There are no
  # parameters yet: what goes by their names, freezing and the scale of gates, is checked when there are.
  optim.build({}, **{**config.optim, "steps": config.optim.steps or 1, "freeze": None,
                    "gate_lr_scale": 1.0})
  if hosts.is_main():  # Which alone uploads and sends, and may alone have what that needs.
    place.refuse(config)
    live.check(config)
  # Before the lock as well, so that other settings are refused at once and not after a wait for it.
  prepare(config, workdir)
  with hosts.owned(workdir):
    prepare(config, workdir)  # Another start may have made the run meanwhile.
    try:
      summary = _train(config, workdir, mesh, began_s)
    except Exception:
      upload.after_training(config, workdir, finished=False)
      raise
    # Still owned, so that the heartbeat goes on and nobody changes what is sent.
    upload.after_training(config, workdir, finished=bool(summary))
  if summary and hosts.is_main():
    print(json.dumps(summary, indent=2), flush=True)
  return summary


def _train(config, workdir: str, mesh, began_s: float | None) -> dict:
  # The config that is saved names the user's own files; only this start reads the run's copies of those that
  # are gone.
  used = assets.with_copies_of_lost(config, workdir)
  recipe = recipes.load(used, mesh, workdir)
  if not recipe.evals:
    logging.warning("the run is trained without evaluation: %s", why_unevaluated(config))
  recipe = with_sample(used, recipe, mesh)
  config = opening.with_steps(config, recipe)
  if config.optim.steps <= config.optim.warmup_steps:
    logging.warning("the run has %d updates, and the learning rate rises over config.optim.warmup_steps=%d: "
                    "it stays low; lower warmup_steps, or train longer", config.optim.steps,
                    config.optim.warmup_steps)
  if has_run(workdir):
    recipe.assets.check(pathlib.Path(workdir))  # Before the run's own config.json is replaced.
  if hosts.is_main():
    configs.save(config, workdir)
    if not has_run(workdir):
      recipe.assets.save(pathlib.Path(workdir))
  # All processes meet behind the writing of process 0: none goes on before the files are there, and none
  # trains on other data than the others.
  hosts.meet("data", lambda: agree.facts_of_data(config, recipe.source, workdir))
  return train.run(config, recipe, mesh, workdir, began_s=began_s)


def run_plan(asked: flags.FlagValues, overrides: Mapping[str, str]) -> int:
  """Compiles the update of a config for a machine that is not there, and prints what it costs.

  Returns:
    the exit code: 0 if it fits, 1 if it does not.
  """
  from atlas_jax.plan import planning  # Of a mode that needs no device, and of no other.
  config = configs.resolve(read_config(asked.config, overrides))
  plan = planning.plan(config, asked.target, asked.devices, command_config=asked.config, advise=asked.advise)
  print(json.dumps(plan, indent=2), flush=True)
  print(planning.table(plan), file=sys.stderr, flush=True)
  return 0 if plan["fits"] else 1


def run_import(config, workdir: str) -> None:
  """Makes a run of the weights at config.trm.path that has made no update, for --mode=eval and --mode=solve.

  Raises:
    ValueError: if the workdir holds a run, or the weights are not of this config.
  """
  if config.recipe != "trm" or config.trm.path is None:
    raise ValueError(f"--mode=import takes the weights of a recursive model, and this is config.recipe="
                     f"{config.recipe!r} with config.trm.path={config.trm.path}; give a config such as "
                     "configs/trm_arc1.py, and --config.trm.path=step_1234")
  if has_run(workdir):
    raise ValueError(f"--workdir={workdir} holds a run already; choose another")
  leave_start(config, workdir)
  if hosts.is_main():
    print(json.dumps({"workdir": workdir, "step": 0}), flush=True)


def leave_start(config, workdir: str) -> None:
  """Makes a run that has made no update, of the model that a config starts from, to be used without training.

  Raises:
    ValueError: if the workdir cannot be written.
  """
  mesh = meshes.make(**config.mesh)
  check_rows(config, mesh, ("data", "eval"))
  prepare(config, workdir)
  with hosts.owned(workdir):
    recipe = recipes.load(config, mesh)
    config = opening.with_steps(config, recipe)
    if hosts.is_main():
      configs.save(config, workdir)
      recipe.assets.save(pathlib.Path(workdir))
    # After config.json: a checkpoint is what makes the folder a run, and a run without its config could not
    # be used.
    train.save_start(config, recipe, mesh, workdir)


def prepare(config, workdir: str) -> None:
  """Makes a workdir; refuses one that cannot be written or whose run has other settings.

  Raises:
    ValueError: says why, and what to do.
  """
  if handed_over.is_here(workdir):
    raise ValueError(f"--workdir={workdir} holds a run that was handed over without its optimizer, and "
                     "cannot go on; train in another workdir, from its parameters with --config.model.path="
                     f"{workdir} (puzzles: --config.trm.path)")
  if has_run(workdir):
    configs.check_same(config, workdir)
  try:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()
  except OSError as error:
    raise ValueError(f"--workdir={workdir} cannot be written: {error.strerror}; choose another") from error


def has_run(workdir: str) -> bool:
  """Returns whether a workdir has metrics or checkpoints; a config alone is left by a start that failed."""
  path = pathlib.Path(workdir)
  # An empty file of metrics is left by a start that was ended before its first row, which has nothing to lose
  # either.
  metrics = path / METRICS
  return any((path / CHECKPOINTS).glob("[0-9]*")) or metrics.is_file() and metrics.stat().st_size > 0


def check_rows(config, mesh, groups: tuple[str, ...]) -> None:
  """Refuses numbers of rows that the mesh cannot split evenly."""
  shards = meshes.n_row_shards(mesh)
  for group in groups:
    rows = config[group].batch_rows
    if rows % shards:
      raise ValueError(
          f"config.{group}.batch_rows={rows} is not a multiple of config.mesh.data x fsdp = {shards}; "
          f"nearest are {configs.near(rows, shards)}")


def why_unevaluated(config) -> str:
  """Returns why a recipe has no evaluation."""
  if not config.data.held_out_frac:
    return "config.data.held_out_frac=0 holds nothing out"
  return f"nothing that is held out can be scored (config.data.held_out_frac={config.data.held_out_frac})"


def with_sample(config, recipe, mesh):
  """Adds a text sample to the evaluations of a language model, if the config asks for one."""
  if not config.eval.sample_tokens or recipe.accounting.unit != "tokens":
    return recipe
  start = load_initial_model(config)
  # A recipe of one's own may train other parameters than config.model describes, from which no text can be
  # written.
  if "." in config.recipe and not _is_of_model(recipe, start):
    logging.info("config.recipe=%r has other parameters than config.model: no text is sampled", config.recipe)
    return recipe

  def write(trained: Trained, prompt, *, tokens):
    params = merge_frozen(trained.params, trained.frozen)
    # As --mode=generate writes it without flags.
    return runs.write(start, start.language, params, prompt, tokens=tokens, temperature=0.8, seed=0,
                      mesh=mesh)

  run = sample.make(write, config.eval.sample_prompt, config.eval.sample_tokens)
  return recipe._replace(evals={**recipe.evals, "sample": Eval(run, "end")})


def _is_of_model(recipe, start) -> bool:
  """Returns whether the parameters of a recipe are those of the model that the config describes."""
  ours, wanted = (jax.eval_shape(make, jax.random.key(0))[0] for make in (recipe.init, start.init))
  return {name for name, _ in tree.named_leaves(ours)} == {name for name, _ in tree.named_leaves(wanted)}


def run_eval(config, workdir: str, *, writes: bool, only: str | None = None) -> None:
  """Evaluates a run's newest checkpoint and prints one JSON object.

  Args:
    config: resolved.
    workdir: of the run.
    writes: whether files are left there.
    only: names of the evaluations to make, with commas, of those that config.eval.tasks names; None: all.

  Raises:
    ValueError: if there are no such evaluations.
  """
  mesh = runs.mesh_here(config)
  check_rows(config, mesh, ("eval",))
  if writes and not os.access(workdir, os.W_OK):
    logging.warning("--workdir=%s cannot be written: the evaluation leaves no files there", workdir)
    writes = False
  written = workdir if writes else None
  recipe = recipes.load(config, mesh, written)
  if not recipe.evals:
    raise ValueError(f"--mode=eval: the run in {workdir} has no evaluation, {why_unevaluated(config)}")
  if only is not None:
    recipe = recipe._replace(evals=recall.only(recipe.evals, only))
  recipe.assets.check(pathlib.Path(workdir))
  # After `check`: other data than the run's would give numbers that look like its own.
  params, tables, step = runs.restore(config, workdir, recipe.init, mesh)
  # False: the trained parameters come from the checkpoint, and only frozen ones are read again.
  loaded = LoadedParams() if recipe.load is None else recipe.load(mesh, False)
  trained = Trained(params, train.frozen_of(config, recipe, mesh, loaded), tables)
  out = closing.evaluate(recipe, trained, step=step, workdir=written)
  if hosts.is_main():
    # JSON has no NaN.
    finite = {name: value if math.isfinite(value) else None for name, value in out.scalars.items()}
    rows = {"rows": list(out.rows)} if out.rows else {}
    print(json.dumps({"step": step, **finite, **rows}), flush=True)


def run_generate(config, workdir: str, asked: flags.FlagValues) -> None:
  """Writes the prompt and what the model adds to it, as it comes."""
  pieces = runs.generate(config, workdir, asked.prompt, tokens=asked.tokens, temperature=asked.temperature,
                         top_k=asked.top_k, seed=asked.seed)
  shown = asked.prompt if config.data.chat_template is None else f"{asked.prompt}\n"  # A chat is answered.
  # Every process takes the pieces, since all of them compute each token; one prints.
  for piece in itertools.chain([shown], pieces, ["\n"]):
    if hosts.is_main():
      print(piece, end="", flush=True)


def run_export(config, workdir: str, asked: flags.FlagValues) -> None:
  """Writes the model as a pretrained one is stored, and prints what was written as one JSON object."""
  from atlas_jax.language import export  # It draws on libraries that other modes need not wait for.
  found = export.run(config, workdir, asked.to, dtype=asked.dtype, adapters=asked.adapters)
  if hosts.is_main():
    print(json.dumps(found), flush=True)


def run_upload(config, workdir: str) -> None:
  """Uploads a run to the Hugging Face Hub, and prints what was sent as one JSON object."""
  found = upload.run(config, workdir)
  if hosts.is_main():
    print(json.dumps(found), flush=True)


def run_serve(config, workdir: str, asked: flags.FlagValues) -> None:
  """Serves the model over HTTP until a signal ends it; prints its address as one JSON object."""
  _check_alone("serve")
  from atlas_jax.language.serve import http_server  # It draws on libraries of an extra.
  http_server.run(config, workdir, port=config.serve.port if asked.port is None else asked.port)


def run_chat(config, workdir: str) -> None:
  """Talks with the model in the terminal until the input ends."""
  _check_alone("chat")
  from atlas_jax.language.serve import terminal  # It draws on libraries of an extra.
  terminal.run(config, workdir, iter(sys.stdin.readline, ""), sys.stdout)


def _check_alone(mode: str) -> None:
  """Refuses several processes, of which each would serve, and a program without the libraries of a server."""
  if jax.process_count() > 1:
    raise ValueError(f"--mode={mode} runs in one process, and {jax.process_count()} were started; start one "
                     "with --num_processes=1, which may have several devices")
  needed = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
  missing = [name for name in needed if find_spec(name) is None]
  if missing:
    raise ModuleNotFoundError(f"--mode={mode} needs the package {missing[0]}: pip install 'atlas_jax[serve]'")


def solver_of(config, asked: flags.FlagValues):
  """Makes the function that solves tasks; refuses what is wrong with them, flags or run without a device.

  Returns:
    () -> None, to be called when devices are found; prints the answers to each ARC task as one JSON object,
    and writes them as ARC's graders read them if a file is given; for a file of several tasks, one more.
  """
  from atlas_jax.puzzles import solve
  from atlas_jax.puzzles.solve import task_file  # They draw on libraries that other modes need not wait for.
  if asked.out is not None:
    solve.check_out(asked.out)
  # --seconds has a default and --steps has none: whichever is given, one of them counts.
  seconds = None if asked.steps is not None else asked.seconds
  found = task_file.read(config, asked.workdir, asked.task)
  task = next(item.task for item in found if item.task) if isinstance(found, list) else found
  ask = solve.SolveOptions(task, seconds=seconds, steps=asked.steps, attempts=asked.attempts,
                           augmentations=asked.augmentations, rows=asked.rows, lr=asked.lr,
                           table_lr=asked.table_lr, batch_rows=asked.batch_rows)
  solve.settings(config, ask)
  if isinstance(found, list) and asked.out is None:
    raise ValueError(f"--task={asked.task} holds {len(found)} tasks, and --out is missing: the file of their "
                     "attempts, beside which finished tasks are kept, such as --out=submission.json")

  def show(report):
    return print(json.dumps(report), flush=True)

  def run() -> None:
    mesh = runs.mesh_here(config)
    check_rows(config, mesh, ("eval",))
    if isinstance(found, list):
      summary = task_file.run(config, asked.workdir, ask, found, asked.out, mesh, show)
    else:
      answers = solve.run(config, asked.workdir, ask, mesh)
      summary = answers.report
    if hosts.is_main():
      show(summary)
      if asked.out is not None and not isinstance(found, list):
        solve.write(answers, asked.out)

  return run
