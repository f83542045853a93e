"""The program: joins the processes of a run, and trains, evaluates, serves, solves, exports, imports.

  python -m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart
  python -m atlas_jax.main --mode=eval --workdir=runs/quickstart
  python -m atlas_jax.main --mode=eval --workdir=runs/quickstart --evals=mqar,niah,babilong
  python -m atlas_jax.main --mode=generate --workdir=runs/quickstart --prompt="def " --tokens=200
  python -m atlas_jax.main --mode=serve --workdir=runs/quickstart --port=8000
  python -m atlas_jax.main --mode=chat --workdir=runs/quickstart
  python -m atlas_jax.main --mode=solve --workdir=runs/arc_cpu --task=FILE.json --seconds=60
  python -m atlas_jax.main --mode=export --workdir=runs/sft --to=FOLDER
  python -m atlas_jax.main --mode=upload --workdir=runs/quickstart
  python -m atlas_jax.main --mode=plan --config=configs/memory_40m.py --target=h100
  python -m atlas_jax.main --mode=generate --from=OWNER/NAME --prompt="def "
  python -m atlas_jax.main --mode=import --config=configs/trm_arc1.py --config.trm.path=STEP_N --workdir=DIR

--config.GROUP.FIELD=VALUE changes one field of the config; atlas_jax/defaults/ lists them all.
"""
import contextlib
import os
import sys
import time
from collections.abc import Mapping

import jax
from absl import flags

from atlas_jax import config as configs
from atlas_jax import modes, remote, trust
from atlas_jax.command import SERVING, WITH_CONFIG, check_flags, parse, read_config
from atlas_jax.explain import code_of, explain, report, start_log
from atlas_jax.files import closed_pipe
from atlas_jax.handover import hub, upload
from atlas_jax.monitor.ledger import process_began_s
from atlas_jax.parallel import agree, hosts, signals


def join(config, asked: flags.FlagValues) -> None:
  """Joins the other processes, whom flags or a cluster name, and finds the devices; see `hosts.start`.

  Raises:
    ValueError: if the processes do not find each other or differ, or devices are missing.
  """

  def facts():
    return agree.facts_of_start(config, {"--mode": asked.mode, "--workdir": asked.workdir})

  hosts.start(asked.coordinator, asked.num_processes, asked.process_id, local_devices=asked.local_devices,
              limits=hosts.Limits(**config.hosts), facts=facts)


def main(asked: flags.FlagValues, overrides: Mapping[str, str], began_s: float) -> int:
  """Does what the command line says; what needs no device is checked before devices are looked for.

  Returns:
    the exit code: 0, or that of a run which was stopped and can go on.
  """
  check_flags(asked, overrides)
  # Before any config of a run is read: it holds for all runs that this one refers to as well.
  if asked.trust:
    trust.give()
  if asked["from"].value:
    asked["workdir"].value = str(hub.fetch(asked["from"].value))
    if asked.mode in SERVING:  # A folder of the cache is named by its commit, which says nothing to a client.
      overrides = {"serve.served_as": hub.name_of(asked["from"].value), **overrides}
  if asked.mode == "plan":
    return modes.run_plan(asked, overrides)
  with remote.local(asked.workdir, writes=asked.mode in WITH_CONFIG) as workdir:
    asked["workdir"].value = workdir
    return _main(asked, overrides, began_s)


def _main(asked: flags.FlagValues, overrides: Mapping[str, str], began_s: float) -> int:
  if asked.mode in WITH_CONFIG:
    config = configs.resolve(read_config(asked.config, overrides))
  elif asked.mode == "upload":
    config = upload.config_of(asked.workdir, overrides)
    # Nothing is computed, and the accelerator may be at work for the run itself.
    jax.config.update("jax_platforms", "cpu")
  else:
    config = modes.config_of_run(asked.workdir, overrides, evals=asked.evals, mode=asked.mode)
  # Tasks and flags of solving are checked here: finding devices takes long, and waits for other processes.
  run_solve = modes.solver_of(config, asked) if asked.mode == "solve" else None
  join(config, asked)
  if asked.mode == "train":
    summary = modes.run_train(config, asked.workdir, began_s=began_s)
    return 0 if summary or asked.stopped_ok else signals.STOPPED
  if asked.mode == "import":
    modes.run_import(config, asked.workdir)
  elif asked.mode == "eval":
    # Those of the run stay its own; what --evals asks for stands beside them, its settings in its rows.
    writes = not asked["from"].value and (not overrides or asked.evals is not None)
    modes.run_eval(config, asked.workdir, writes=writes, only=asked.evals)
  elif run_solve is not None:
    run_solve()
  elif asked.mode == "export":
    modes.run_export(config, asked.workdir, asked)
  elif asked.mode == "upload":
    modes.run_upload(config, asked.workdir)
  elif asked.mode == "serve":
    modes.run_serve(config, asked.workdir, asked)
  elif asked.mode == "chat":
    modes.run_chat(config, asked.workdir)
  else:
    modes.run_generate(config, asked.workdir, asked)
  return 0


def entry(argv: list[str], began_s: float | None = None) -> int:
  """Runs the program; what the caller can mend is one line on standard error.

  Args:
    argv: the command line.
    began_s: when the program began, as `time.time`, for a run's account of time; None: now.

  Returns:
    the exit code.
  """
  began_s = time.time() if began_s is None else began_s
  flags.FLAGS.mark_as_parsed()  # Flags of libraries: nobody sets them, and absl logs only after this.
  start_log()
  asked = None
  line = None
  failed = True
  try:
    asked, overrides = parse(argv)
    if asked.help:
      print(__doc__, *(f"--{name}: {asked[name].help}" for name in asked if len(name) > 1), sep="\n")
      return 0

    def impatient(code):
      return hosts.leave(code, "ended by a second signal")

    with signals.StopSignals(impatient) if asked.mode == "train" else contextlib.nullcontext():
      code = main(asked, overrides, began_s)
    failed = False
  except BrokenPipeError:  # From head and the like, which have read enough; a flush at exit would fail, too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 1
  except (Exception, KeyboardInterrupt) as error:
    line = explain(error, None if asked is None else asked.workdir)
    code = code_of(error)
    line = report(error, line, traced=asked is not None and asked.traceback)
  # One of several processes cannot return when it fails: what runs at exit waits for others, who wait for it.
  if failed and hosts.joined():
    hosts.leave(code, line)
  return code


if __name__ == "__main__":
  sys.exit(closed_pipe.quiet(entry)(sys.argv, process_began_s()))
