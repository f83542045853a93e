"""The rows of `bench.py serve`: a real server under one stream, a full set of slots, and many clients.

A run of random weights is made, which are as fast as trained ones and say nothing; `--mode=serve` serves it
in a process of its own, and clients on this machine ask for completions as streams, each on a connection of
its own. `--clients=1,8,64` are the loads: so many clients at once, each of which asks again when it has its
answer, until at least 8 are answered. The loads take turns, --repeats times, and a row has the medians:

  tokens_per_s           ids written, by the clock, of all clients together
  cpu_s_per_1000_tokens  CPU-seconds of the server's process; clients not counted, which share its cores
  first_token_s_median   from before the connection until the first id is there; _p95 for 19 of 20 answers
  lost                   requests without a whole answer, over all repeats; must be 0
  equal, answers         answers whose ids equal those that `decoding.plain` writes for the same prompt, seed
                         and options, one completion at a time, without scheduler, server or stored
                         states; it must be all of them
  resident_mib_before    memory of the server's process once it serves, and _after this load's last repeat
  speedup                tokens_per_s beside that of the first load

Prompts are random ids, other ones in each request; no request finds a state of an earlier repeat, because
each repeat asks as another `user`. --config.serve.FIELD=VALUE changes the server, --config.GROUP.FIELD=VALUE
the model. The tokenizer is that of bytes, whatever the config's is: ids are asked for and told. A row that
lost an answer or had a wrong one says so as its error, and the exit status is 1.

  python scripts/bench.py serve --json
  python scripts/bench.py serve --config=configs/memory_40m.py --new_tokens=16 --repeats=2 --json
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import bench_server

from atlas_jax.files import closed_pipe

KINDS = ("serve",)
CONFIG = "configs/memory_40m.py:smoke,pretrain"
LEAST_ANSWERS = 8  # Of a load, so that a single client's rate is no accident.
TABLE = (("clients", 7), ("tokens_per_s", 12), ("cpu_s_per_1000_tokens", 21), ("first_token_s_median", 20),
         ("first_token_s_p95", 17), ("lost", 4), ("equal", 5), ("answers", 7), ("resident_mib_before", 19),
         ("resident_mib_after", 18), ("speedup", 7))


def add_flags(kinds, positive) -> list[argparse.ArgumentParser]:
  """Adds the measurement; gives its parser, without --repeats and --json."""
  made = kinds.add_parser("serve", help="a server under load", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
  flag = made.add_argument
  flag("--config", default=CONFIG, help="FILE or FILE:ARGUMENTS of the model, as for training")
  flag("--clients", type=lambda text: [positive(part) for part in text.split(",")], default=[1, 8, 64],
       help="clients at once, for each load")
  flag("--prompt_tokens", type=positive, default=48, help="ids of a prompt")
  flag("--new_tokens", type=positive, default=32, help="ids of a completion")
  return [made]


def specs(args, overrides: dict) -> list[dict]:
  """Returns what is measured together: all loads of one server."""
  serve = {name: value for name, value in overrides.items() if name.startswith("serve.")}
  model = {name: value for name, value in overrides.items() if name not in serve}
  cores = str(len(os.sched_getaffinity(0)))
  env = {"NPROC": cores, "JAX_NUM_CPU_DEVICES": "1", "HF_HUB_OFFLINE": "1"}
  shape = {name: getattr(args, name) for name in
           ("config", "clients", "prompt_tokens", "new_tokens", "repeats")}
  return [dict(side="serve", overrides={"data.tokenizer": "byte", **model}, serve=serve, env=env, **shape)]


def measure(spec: dict) -> list[dict]:
  """Measures one server; gives a row per load."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    made = child(spec, "leave_run", workdir)
    if "error" in made:
      return [{**row_of(spec, made, clients), **made} for clients in spec["clients"][:1]]
    asked = requests(spec, made["vocab_size"])
    offline = child(spec, "offline", workdir, asked)
    if "error" in offline:
      return [{**row_of(spec, made, clients), **offline} for clients in spec["clients"][:1]]
    loads: dict[int, list] = {clients: [] for clients in spec["clients"]}
    flags = [f"--config.{name}={value}" for name, value in spec["serve"].items()]
    after = {}
    with bench_server.Server(workdir, *flags, env=spec["env"]) as server:
      before = server.resident_mib()
      bench_server.load(server, [{**one, "user": "warm"} for one in asked[:LEAST_ANSWERS]], LEAST_ANSWERS)
      for repeat in range(spec["repeats"]):
        for clients, done in loads.items():
          mine = [{**one, "user": f"{clients} {repeat}"} for one in asked[:max(clients, LEAST_ANSWERS)]]
          done.append(bench_server.load(server, mine, clients))
          after[clients] = server.resident_mib()
  rows = [{**row_of(spec, made, clients), "resident_mib_before": round(before, 1),
           "resident_mib_after": round(after[clients], 1), **figures(done, offline["tokens"])}
          for clients, done in loads.items()]
  for row in rows:
    if row["tokens_per_s"] and rows[0]["tokens_per_s"]:
      row["speedup"] = round(row["tokens_per_s"] / rows[0]["tokens_per_s"], 2)
  return rows


def requests(spec: dict, vocab_size: int) -> list[dict]:
  """Returns the requests of the largest load; smaller ones send the first of them."""
  draw = random.Random(0)
  return [{"prompt": [draw.randrange(vocab_size) for _ in range(spec["prompt_tokens"])], "seed": number,
           "max_tokens": spec["new_tokens"], "temperature": 1.0, "ignore_eos": True}
          for number in range(max(LEAST_ANSWERS, *spec["clients"]))]


def figures(loads: list[bench_server.Load], offline: list[list[int]]) -> dict:
  """Returns the numbers of a load, whose requests were also written offline."""
  answers = [(one, offline[number]) for load in loads for number, one in enumerate(load.answers)]
  lost = sum(load.lost for load in loads)
  equal = sum(list(one.tokens) == wanted for one, wanted in answers)
  found = {"lost": lost, "equal": equal, "answers": len(answers)}
  if lost or equal < len(answers):
    said = next((one.error for one, _ in answers if one.error), "")
    return {**found, "error": f"{lost} of {len(answers)} answers were lost, {equal} are right {said}".strip()}
  median = bench_server.median
  return {**found, "tokens_per_s": round(median(loads, lambda one: one.tokens / one.wall_s), 1),
          "cpu_s_per_1000_tokens": round(median(loads, lambda one: 1_000 * one.cpu_s / one.tokens), 3),
          "first_token_s_median": round(median(loads, lambda one: one.first_s(0.5)), 4),
          "first_token_s_p95": round(median(loads, lambda one: one.first_s(0.95)), 4)}


def row_of(spec: dict, made: dict, clients: int) -> dict:
  """Returns a row with what is known before anything is measured."""
  shape = ("config", "overrides", "serve", "prompt_tokens", "new_tokens", "repeats")
  return {"name": "serve", **dict.fromkeys([name for name, _ in TABLE]), "clients": clients,
          **{name: spec[name] for name in shape}, "weights": "untrained",
          **{name: made.get(name) for name in ("params", "device")}, "versions": made.get("versions", {}),
          "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
          "load_average": round(os.getloadavg()[0], 1)}


def child(spec: dict, what: str, workdir: pathlib.Path, prompts: list | None = None) -> dict:
  """Runs a function of this file in a process of its own, as the server runs; returns what it says."""
  path = os.pathsep.join(filter(None, [str(bench_server.ROOT), os.environ.get("PYTHONPATH")]))
  given = json.dumps({"spec": spec, "what": what, "workdir": str(workdir), "prompts": prompts})
  done = subprocess.run([sys.executable, __file__], input=given, capture_output=True, text=True,
                        cwd=bench_server.ROOT, env={**os.environ, **spec["env"], "PYTHONPATH": path})
  if done.returncode or not done.stdout.strip():
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    return {"error": f"{what}: {last}"}
  return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------- in processes of their own


def leave_run(spec: dict, workdir: pathlib.Path, prompts: None) -> dict:
  """Leaves a run of a model that has learnt nothing."""
  del prompts
  import bench_child
  import jax

  from atlas_jax import config as configs
  from atlas_jax import tree
  from atlas_jax.checkpoint import Checkpoints
  from atlas_jax.command import read_config
  from atlas_jax.language import assets
  from atlas_jax.language.initial_model import load_initial_model

  try:
    config = configs.resolve(read_config(spec["config"], spec["overrides"]))
    start = load_initial_model(config)
  except ValueError as error:
    return {"error": " ".join(str(error).split()), "refused": True}
  params, _ = jax.jit(start.init)(jax.random.key(0))
  configs.save(config, workdir)
  assets.save(config, start, workdir)
  saver = Checkpoints(workdir, **config.checkpoint)
  average = {} if config.optim.ema_decay is None else {"ema": params}
  saver.save(1, {"params": params, **average}, {"step": 1})
  saver.close()
  return {"params": tree.count(params), "device": bench_child.processor(),
          "vocab_size": start.language.vocab_size,
          "versions": bench_child.versions("jax", "jaxlib", "fastapi", "uvicorn")}


def offline(spec: dict, workdir: pathlib.Path, prompts: list[dict]) -> dict:
  """Writes the completions of all requests one by one, with the programs of the server's sizes."""
  from atlas_jax import command
  from atlas_jax.language import runs
  from atlas_jax.language.decoding import plain, programs
  from atlas_jax.language.decoding.requests import CompletionRequest
  from atlas_jax.language.decoding.sampler import SamplingOptions
  from atlas_jax.language.decoding.served_model import ServedModel
  from atlas_jax.language.serve import served_run

  config = runs.config_of(workdir)
  for name, value in spec["serve"].items():
    command.override(config, name, value)
  mesh = runs.mesh_here(config)
  tuned = runs.open_tuned(config, workdir, mesh)
  settings = served_run.settings(config, served_run.room_tokens_of(config, tuned.language))
  shapes = programs.Shapes(settings.group_rows, settings.piece_tokens, settings.room_tokens)
  made = programs.make(tuned.language, shapes, mesh=mesh)
  model = ServedModel("offline", tuned.step, tuned.language, tuned.params)
  tokens = []
  for one in prompts:
    options = SamplingOptions(max_tokens=one["max_tokens"], temperature=one["temperature"])
    request = CompletionRequest(tuple(one["prompt"]), options, seed=one["seed"])
    (events, _), = plain.complete(made, model, request, tuned.start.tokenizer)
    tokens.append([event.token for event in events])
  return {"tokens": tokens}


@closed_pipe.quiet
def main() -> int:
  """Runs the function that standard input names; prints what it returns as one line."""
  lines = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Libraries print to standard error.
  given = json.load(sys.stdin)
  known = {"leave_run": leave_run, "offline": offline}
  print(json.dumps(known[given["what"]](given["spec"], pathlib.Path(given["workdir"]), given["prompts"])),
        file=lines, flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
