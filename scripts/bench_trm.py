"""The rows of `bench.py trm`: a training step of a recursive model, and a supervision step of an evaluation.

The step is the loop's own: loss and gradients, optimizer, moving average and rows of the table, in a donated
state, on random puzzles. Only `case` imports jax; it runs in the process that measures.
"""
import argparse
import os
import statistics
import time

VARIANTS = ("mlp", "att")
WHAT = ("train", "eval_step")
# What is measured unless --config.GROUP.FIELD=VALUE says otherwise: 32 puzzles in float32.
DEFAULTS = {"data.batch_rows": "32", "train.accumulate_steps": "8", "trm.dtype": "float32",
            "optim.steps": "1000"}
TABLE = (("variant", 8), ("what", 10), ("batch", 6), ("cpu_s_per_step", 15), ("steps_per_s", 12),
         ("puzzles_per_s", 14), ("peak_memory_mib", 16), ("flops_fraction_of_peak", 23), ("compile_s", 10))


def add_flags(kinds, one_of, positive) -> argparse.ArgumentParser:
  """Adds `trm` to the kinds of measurements; gives its parser."""
  made = kinds.add_parser("trm", help="steps of a recursive model", allow_abbrev=False)
  made.add_argument("--config", default="configs/trm_sudoku.py", help="FILE, as for training")
  made.add_argument("--variants", type=one_of(VARIANTS), default=list(VARIANTS), help="mlp, att or both")
  made.add_argument("--what", type=one_of(WHAT), default=list(WHAT), help="train, eval_step or both")
  made.add_argument("--batch", type=positive, help="puzzles per step; by default 32")
  return made


def specs(args, overrides: dict) -> list[dict]:
  """Returns what each row measures."""
  fields = {**DEFAULTS, **({"data.batch_rows": str(args.batch)} if args.batch else {}), **overrides}
  return [dict(side="trm", config=f"{args.config}:{variant}", variant=variant, what=what, overrides=fields,
               repeats=args.repeats) for variant in args.variants for what in args.what]


def row_of(spec: dict, ours) -> dict:
  """Makes the row of what was measured; `ours` is the `bench.Side` that did it."""
  info = ours.info
  row = {"name": "trm", "variant": spec["variant"], "what": spec["what"], "batch": info.get("tokens"),
         **{name: None for name, _ in TABLE[3:]}, "matmul_flops_per_s": None, **info.get("row", {})}
  if ours.works:
    middle = lambda times, name: statistics.median(each[name] for each in times)
    per = "cpu_s" if info["platform"] == "cpu" else "wall_s"
    wall_s = middle(ours.times, "wall_s")
    peak = info["devices"] * statistics.median(each["flops"] / each[per] for each in ours.products)
    row |= {"cpu_s_per_step": round(middle(ours.times, "cpu_s"), 3), "steps_per_s": round(1 / wall_s, 4),
            "puzzles_per_s": round(info["tokens"] / wall_s, 3),
            "peak_memory_mib": round(ours.times[-1]["peak_memory_mib"], 1),
            "flops_fraction_of_peak": round(info["flops"] / middle(ours.times, per) / peak, 4),
            "matmul_flops_per_s": round(peak)}
  else:
    row |= {"error": info["error"], "refused": bool(info.get("known"))}
  return {**row, "config": spec["config"], "overrides": spec["overrides"], "repeats": spec["repeats"],
          "threads": int(os.environ.get("NPROC", os.cpu_count() or 1)), "device": info.get("device"),
          "versions": info.get("versions", {}), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
          "load_average": round(os.getloadavg()[0], 1)}


def case(spec: dict, about) -> tuple:
  """Prepares one row; gives what `bench_child.Case` holds, made by its function `about`.

  Raises:
    ValueError: if the config is not one of a recursive model, or a field is wrong.
  """
  import jax

  from atlas_jax import config as configs
  from atlas_jax import recipes, state, step, train
  from atlas_jax.command import read_config
  from atlas_jax.optim import build as optim
  from atlas_jax.parallel import hosts
  from atlas_jax.parallel import mesh as meshes
  from atlas_jax.recipes import trm

  jax.config.update("jax_enable_compilation_cache", False)  # Else the time of compiling would not be one.
  config = configs.resolve(read_config(spec["config"], spec["overrides"]))
  if config.recipe != "trm":
    raise ValueError(f"--config={spec['config']} trains {config.recipe}, not trm")
  mesh, model = meshes.make(**config.mesh), trm.model_of(config)
  recipe = recipes.Recipe(
      trm.init_of(config, model, 1), trm.loss_of(config, model), None, {}, update=trm.update_of(config),
      accounting=trm.accounting_of(config, "puzzles"))
  batch, stop = hosts.global_batch(mesh, puzzles(config, model)), hosts.StopFlag(mesh).array()
  abstract, _ = train.abstract_state(config, recipe, mesh)
  optimizer_of = lambda params: optim.build(params, **config.optim)
  held = [state.build(abstract, recipe.init, optimizer_of, config.optim.ema_decay, config.seed)]
  frozen = jax.jit(lambda: state.first(recipe.init, config.seed).frozen)()
  flops, start = step.model_flops(recipe, held[0], frozen, batch), time.perf_counter()
  if spec["what"] == "train":
    compiled = step.jit_step(config, recipe, mesh, held[0]).lower(held[0], batch, frozen, stop).compile()
    run = lambda check=False: _train(compiled, held, batch, frozen, stop, check)
  else:
    flops /= 1 + 2 * recipe.accounting.backward_frac
    run = _evaluation(model, held, batch)
  row = {"compile_s": round(time.perf_counter() - start, 1), "dtype": config.trm.dtype,
         "accumulate_steps": config.train.accumulate_steps}
  info, peak_bytes, product = about(config.data.batch_rows, flops, config.trm.dtype, row, mesh.size)
  return run, info, peak_bytes, product


def puzzles(config, model) -> dict:
  """Draws random puzzles."""
  import numpy as np

  draw = np.random.default_rng(0).integers(1, model.vocab_size, (2, config.data.batch_rows, model.seq_len))
  ids_B = np.zeros(config.data.batch_rows, np.int32)
  return {"inputs_BT": draw[0].astype(np.int32), "labels_BT": draw[1].astype(np.int32), "ids_B": ids_B}


def _train(compiled, held: list, batch, frozen, stop, check: bool) -> bool:
  import jax

  held[0], metrics = jax.block_until_ready(compiled(held[0], batch, frozen, stop))
  return not check or not int(metrics["train/skipped_updates"])


def _evaluation(model, held: list, batch):
  """Compiles a supervision step without loss; it takes its latents from the one before."""
  import jax
  import jax.numpy as jnp

  params, ids_B, latents = held[0].params, batch["ids_B"], held[0].carry.pool.latents
  rows_BE = held[0].tables["puzzles"][ids_B] if model.row_width else jnp.zeros((ids_B.shape[0], 0))
  held[:] = [jax.tree.map(jnp.ones_like, latents)]  # The rest of the state would count as memory.
  step = jax.jit(lambda z, params, *inputs: model.apply({"params": params}, *inputs, z), donate_argnums=0)
  compiled = step.lower(held[0], params, batch["inputs_BT"], rows_BE).compile()

  def run(check=False):
    out = jax.block_until_ready(compiled(held[0], params, batch["inputs_BT"], rows_BE))
    held[0] = out.latents
    return not check or bool(jnp.isfinite(out.logits_BTV).all())

  return run
