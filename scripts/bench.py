"""Measures speed and memory of memory layers and of whole training steps, also beside titans-pytorch.

  python scripts/bench.py memory --rule=titans --lengths=512,2048,8192 --peer
  python scripts/bench.py memory --rule=all --lengths=2048 --json
  python scripts/bench.py memory_lm --config=configs/memory_40m.py:cpu,pretrain
  python scripts/bench.py trm --variants=mlp,att --json
  python scripts/bench.py grpo --peer --trl_python=PYTHON --tunix_python=PYTHON --json
  python scripts/bench.py sampler --sizes=tiny
  python scripts/bench.py decode --lengths=4096,32768 --peer --peer_python=PYTHON --json
  python scripts/bench.py decode --lengths=512 --rows=1,8 --json
  python scripts/bench.py serve --json
  python scripts/bench.py runtime --json

`memory` is `memory.layer.Memory` on one document of random vectors, with the product behind it that brings
its heads back to the layer's width; its backward pass is that of mean(out^2) to the parameters. `memory_lm`
is a training step on random tokens; `trm` is a training step of a recursive model, or one supervision step of
its evaluation, on random puzzles; --config.GROUP.FIELD=VALUE changes the config of both. `grpo` is a step of
policy training, completions and all, and `sampler` the completions alone, see `bench_rl`; `decode` is writing
behind a long context, beside `generate` of Hugging Face with a Transformer of equal size, see `bench_decode`;
`serve` is a real server with many clients at once, see `bench_serve`; `runtime` is sessions of agents, see
`bench_runtime`; --config.GROUP.FIELD=VALUE changes the
model of both. Every row is
measured in a process of its own, so that its peak memory is its own. --peer runs the Titans memory of
titans-pytorch, or the same step of TRL and Tunix, at the same shapes in the same run, turn by turn; what is
not installed for this Python may be for one that --trl_python and --tunix_python name.

The peer's threads sleep while they wait (OMP_WAIT_POLICY=passive, unless that is set): by default they spin,
which on a busy machine trebles its CPU-seconds without any more work. Both sides have their large arrays in
huge pages where glibc offers them (GLIBC_TUNABLES, unless that is set); --peer_huge_pages=no leaves the peer
as it comes. All systems of `grpo` and `sampler` are as they come, unless --huge_pages=yes.

Figures are medians. Peak memory is that of the repeats: on a CPU of the whole process, after preparation and
compilation, on accelerators of the device. On a CPU rates that are compared are per CPU-second, which other
work on the machine changes least: the ratio to the peer, and the share of the rate of matrix products, which
is measured between the repeats. On accelerators both are by the clock. What is counted as FLOPs:
`monitor.memory_flops` for `memory` (a backward pass counts twice a forward pass, recomputation not at all),
`train.model_flops` for `memory_lm`. A row that cannot be measured says why, and the exit status is 1; it is 2
for wrong arguments.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import bench_decode
import bench_rl
import bench_runtime
import bench_serve
import bench_trm

from atlas_jax.files import closed_pipe
from atlas_jax.memory import rules

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
# The state of the peer: two matrices of four times the width of a head.
DEFAULT_OPTIONS = {"titans": {"depth": 2, "expansion": 4}}
WHAT = ("forward", "forward_backward")
PEER = "titans_pytorch"
SETTLE_S = 0.25  # Threads of a library spin for a while after its last product.
TABLE = (("rule", 16), ("what", 16), ("length", 7), ("tokens_per_s", 12), ("tokens_per_cpu_s", 16),
         ("peak_memory_mib", 15), ("flops_fraction_of_peak", 22))
PEER_TABLE = (("peer_tokens_per_cpu_s", 21), ("peer_peak_memory_mib", 20), ("ratio", 6))
GIVEN = ("rule", "impl", "batch", "length", "width", "heads", "chunk", "what", "dtype", "options",
         "remat_chunks", "peer_huge_pages")
PEER_KEYS = ("peer_tokens_per_s", "peer_tokens_per_cpu_s", "peer_peak_memory_mib", "ratio")


class Parser(argparse.ArgumentParser):
  """Reports what is wrong in one line."""

  def error(self, message):
    """Raises what `main` prints."""
    raise ValueError(message)


def positive(text: str) -> int:
  """Reads a whole number of at least 1."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
  return int(text)


def one_of(known):
  """Makes the reader of a comma-separated choice."""
  def read(text: str) -> list[str]:
    chosen = text.split(",")
    if wrong := sorted(set(chosen) - set(known)):
      raise argparse.ArgumentTypeError(f"{wrong[0]!r} is unknown; known are {', '.join(known)}")
    return chosen
  return read


def parser() -> Parser:
  """Makes the reader of the command line."""
  made = Parser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False)
  kinds = made.add_subparsers(dest="name", required=True,
                              metavar="memory|memory_lm|trm|grpo|sampler|decode|serve|runtime")
  memory = kinds.add_parser("memory", help="a memory layer", allow_abbrev=False)
  flag = memory.add_argument
  flag("--rule", default="titans", help="a memory rule, or all")
  flag("--options", type=json.loads, default={}, help="the rule's options as JSON, on top of the bench's own")
  flag("--lengths", type=lambda text: [positive(part) for part in text.split(",")], default=[2048])
  flag("--what", type=one_of(WHAT), default=list(WHAT), help="forward, forward_backward or both")
  for name, default in (("batch", 2), ("width", 384), ("heads", 4), ("chunk", 64)):
    flag(f"--{name}", type=positive, default=default)
  flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the layer's input")
  flag("--impl", default="auto", help="form of the memory's scan")
  flag("--remat_chunks", type=lambda text: None if text == "none" else positive(text), default=32,
       help="chunks computed again together in the backward pass; none keeps all inner values")
  flag("--peer", action="store_true", help="run titans-pytorch at the same shapes, turn by turn")
  flag("--peer_batch_size", type=positive, help="the peer's batch_size: tokens between its anchors")
  flag("--peer_huge_pages", choices=("yes", "no"), default="yes",
       help="whether the peer's arrays lie in huge pages, too, as ours do where glibc offers them")
  flag("--peer_memory_limit_gib", type=float, default=13.0, help="the peer is ended when it passes this")
  step = kinds.add_parser("memory_lm", help="a training step", allow_abbrev=False)
  step.add_argument("--config", required=True, help="FILE or FILE:ARGUMENTS, as for training")
  others = (bench_trm.add_flags(kinds, one_of, positive), *bench_rl.add_flags(kinds, one_of),
            *bench_decode.add_flags(kinds, positive), *bench_serve.add_flags(kinds, positive),
            *bench_runtime.add_flags(kinds, one_of, positive))
  for each in (memory, step, *others):
    each.add_argument("--repeats", type=positive, default=5)
    each.add_argument("--json", action="store_true", help="one JSON object per row")
  return made


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[dict]]:
  """Reads the command line; gives it, and what each row measures.

  Raises:
    ValueError: says which argument is wrong and what it needs.
  """
  overrides, rest = {}, []
  for word in argv:
    found = re.fullmatch(r"--config\.([^=]+)=(.*)", word, re.DOTALL)
    overrides.update([found.groups()] if found else [])
    rest += [] if found else [word]
  args = parser().parse_args(rest)
  if args.name == "memory_lm":
    lm = dict(side="memory_lm", config=args.config, overrides=overrides, repeats=args.repeats)
    return args, [lm]
  if args.name == "trm":
    return args, bench_trm.specs(args, overrides)
  if args.name in bench_decode.KINDS:
    return args, bench_decode.specs(args, overrides)
  if args.name in bench_serve.KINDS:
    return args, bench_serve.specs(args, overrides)
  if args.name in bench_rl.KINDS and not overrides:
    return args, bench_rl.specs(args)
  if args.name in bench_runtime.KINDS and not overrides:
    return args, bench_runtime.specs(args)
  if overrides:
    raise ValueError(f"--config.{next(iter(overrides))} is for memory_lm, trm, decode and serve; {args.name} "
                     "has its own flags")
  check(args)
  names = rules.names() if args.rule == "all" else [args.rule]
  shape = {name: getattr(args, name) for name in
           ("batch", "width", "heads", "chunk", "dtype", "impl", "remat_chunks", "repeats")}
  return args, [
      dict(side="memory", rule=name, options={**DEFAULT_OPTIONS.get(name, {}), **args.options}, length=length,
           what=what, peer=args.peer, peer_huge_pages=args.peer_huge_pages if args.peer else None, **shape)
      for name in names for length in args.lengths for what in args.what]


def check(args) -> None:
  """Refuses arguments that do not fit together."""
  if args.rule != "all" and "." not in args.rule and args.rule not in rules.names():
    raise ValueError(f"--rule={args.rule} is unknown; rules are all, {', '.join(rules.names())}")
  if not isinstance(args.options, dict):
    raise ValueError(f'--options={json.dumps(args.options)} must be a JSON object, such as {{"depth": 2}}')
  if args.options and args.rule == "all":
    raise ValueError("--options belong to one rule, and --rule=all measures all; name the rule")
  if args.width % args.heads:
    raise ValueError(f"--width={args.width} is not a multiple of --heads={args.heads}")
  for length in args.lengths:
    if length % args.chunk:
      raise ValueError(f"--lengths: {length} is not a multiple of --chunk={args.chunk}")
  if args.peer and args.rule != "titans":
    raise ValueError(f"--peer runs Titans memory, this is --rule={args.rule}; it compares with --rule=titans")
  if args.peer and importlib.util.find_spec(PEER) is None:
    raise ValueError(f"--peer: {PEER} is not installed for {sys.executable}; `pip install titans-pytorch` "
                     "there, or use a Python that has both")


class Child:
  """A process that prepares one case, and repeats it when told."""

  def __init__(self, spec: dict):
    self._errors = tempfile.TemporaryFile("w+")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    if spec.get("huge_pages", True):  # Mapping large arrays in small pages takes a fifth of a training step.
      env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if spec.get("peer"):  # Both share the accelerator.
      env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if spec["side"] == "peer":  # Else its threads spin while they wait, and that would count as CPU-seconds.
      env.setdefault("OMP_WAIT_POLICY", "passive")
    env |= spec.get("env", {})
    command = [spec.get("python", sys.executable), str(SCRIPTS / spec.get("script", "bench_child.py"))]
    self._process = subprocess.Popen([*command, json.dumps(spec)], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=self._errors, text=True, env=env)

  def answer(self) -> dict:
    """Waits for the next line; a child that has ended says why."""
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    code = self._process.wait()
    self._errors.seek(0)
    last = (self._errors.read().strip().splitlines() or [""])[-1]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return {"error": f"the process {how}" + (f": {last}" if last else "")}

  def ask(self, word: str) -> dict:
    """Sends a word and waits for the answer."""
    try:
      print(word, file=self._process.stdin, flush=True)
    except BrokenPipeError:
      pass  # Its last words are still to be read.
    return self.answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()
    self._errors.close()


class Side:
  """One side of a row, ours or the peer's: its child, what it said, and its times."""

  def __init__(self, spec: dict):
    self.child = Child(spec)
    self.info = self.child.answer()
    self.times: list[dict] = []
    self.products: list[dict] = []

  @property
  def works(self) -> bool:
    """Returns whether nothing has gone wrong so far."""
    return "error" not in self.info

  def go(self, word: str, times: list[dict]) -> None:
    """Asks for one more time, if all is well."""
    if self.works:
      answer = self.child.ask(word)
      if "error" in answer:
        self.info = {**self.info, **answer}
      else:
        times.append(answer)

  def rates(self) -> dict:
    """Returns tokens per second and per CPU-second, and MiB; nothing if it did not work."""
    if not self.works:
      return {}
    wall_s, cpu_s = median(self.times, "wall_s"), median(self.times, "cpu_s")
    return {"tokens_per_s": self.info["tokens"] / wall_s, "tokens_per_cpu_s": self.info["tokens"] / cpu_s,
            "peak_memory_mib": self.times[-1]["peak_memory_mib"]}


def median(times: list[dict], name: str) -> float:
  """Returns the median of one figure."""
  return statistics.median(each[name] for each in times)


def measure(spec: dict, args) -> list[dict]:
  """Measures turn by turn with peers, if that is asked for; gives one row, of `bench_rl` one per system."""
  if args.name in bench_rl.KINDS:
    return bench_rl.measure(spec, Side)
  if args.name in bench_decode.KINDS:
    return bench_decode.measure(spec, Side)
  if args.name in bench_serve.KINDS:
    return bench_serve.measure(spec)
  if args.name in bench_runtime.KINDS:
    return bench_runtime.measure(spec)
  sides = [Side(spec)]
  try:
    if spec.get("peer") and sides[0].works:
      sides.append(Side({**spec, "side": "peer", "platform": sides[0].info["platform"],
                         "huge_pages": spec["peer_huge_pages"] == "yes",
                         "peer_batch_size": args.peer_batch_size, "limit_gib": args.peer_memory_limit_gib}))
    for _ in range(spec["repeats"]):
      for side in sides:
        time.sleep(SETTLE_S)
        side.go("go", side.times)
      sides[0].go("product", sides[0].products)
  finally:
    for side in sides:
      side.child.close()
  return [bench_trm.row_of(spec, sides[0]) if args.name == "trm" else row_of(args.name, spec, *sides)]


def row_of(name: str, spec: dict, ours: Side, peer: Side | None = None) -> dict:
  """Makes the row of what was measured."""
  given = {key: spec.get(key) for key in GIVEN}
  info = dict(ours.info)
  row = {"name": name, **given, **info.pop("row", {}),
         "tokens_per_s": None, "tokens_per_cpu_s": None, "peak_memory_mib": None, **rounded(ours.rates()),
         "flops_fraction_of_peak": None, "matmul_flops_per_s": None, **dict.fromkeys(PEER_KEYS)}
  unit = "tokens_per_cpu_s" if info.get("platform") == "cpu" else "tokens_per_s"
  if ours.works:
    per = "cpu_s" if info["platform"] == "cpu" else "wall_s"
    peak = info["devices"] * statistics.median(each["flops"] / each[per] for each in ours.products)
    row["matmul_flops_per_s"] = round(
        info["devices"] * statistics.median(each["flops"] / each["wall_s"] for each in ours.products))
    if info["flops"] is not None:
      row["flops_fraction_of_peak"] = round(info["flops"] / median(ours.times, per) / peak, 4)
  if peer is not None:
    row.update({f"peer_{key}": value for key, value in rounded(peer.rates()).items()})
    if ours.works and peer.works:
      row["ratio"] = round(ours.rates()[unit] / peer.rates()[unit], 3)
  for side, key in ((ours, "error"), (peer, "peer_error")):
    if side is not None and not side.works:
      row[key] = side.info["error"]
      row["peer_passed_limit" if side is peer else "refused"] = bool(side.info.get("known"))
  versions = {**info.get("versions", {}), **(peer.info.get("versions", {}) if peer else {})}
  load = round(os.getloadavg()[0], 1)
  now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
  return {**row, "repeats": spec["repeats"], "device": info.get("device"), "versions": versions, "date": now,
          "load_average": load}


def rounded(rates: dict) -> dict:
  """Drops digits that say nothing."""
  return {key: round(value, 1) for key, value in rates.items()}


def show(row: dict, columns) -> str:
  """Writes a row of the table."""
  cells = [f"{'-' if row[name] is None else row[name]:>{width}}" for name, width in columns]
  notes = [f"{key}: {row[key]}" for key in ("error", "peer_error") if key in row]
  return "  ".join([*cells, *notes])


@closed_pipe.quiet
def main(argv: list[str]) -> int:
  """Measures what the command line asks for and prints it row by row; gives the exit status."""
  try:
    args, specs = parse(argv)
  except ValueError as error:
    print(f"bench: {error}", file=sys.stderr)
    return 2
  columns = TABLE + (PEER_TABLE if specs[0].get("peer") else ())
  columns = {"trm": bench_trm.TABLE, "decode": bench_decode.TABLE, "serve": bench_serve.TABLE,
             "runtime": bench_runtime.TABLE,
             **dict.fromkeys(bench_rl.KINDS, bench_rl.TABLE)}.get(args.name, columns)
  failed, headed = False, args.json
  for row in (row for spec in specs for row in measure(spec, args)):
    refused = row.pop("refused", False)
    if refused and (args.name != "memory" or args.rule != "all"):
      print(f"bench: {row['error']}", file=sys.stderr)
      return 2
    if not headed:
      print(f"{args.name}: {row['device']}, {row['versions']}, {row['date']}")
      print("  ".join(f"{name:>{width}}" for name, width in columns))
      headed = True
    print(json.dumps(row) if args.json else show(row, columns), flush=True)
    failed |= "error" in row or "peer_error" in row and not row["peer_passed_limit"]
  return int(failed)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
