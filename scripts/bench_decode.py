"""The rows of `bench.py decode`: ids a second that a model writes behind a context, and bytes of its state.

Our model reads the context by pieces, as a server does, and then draws id after id in one group of slots, all
of which go on from that context. The peer is a Llama of as many parameters, depth and width with random
weights, written on by `generate` of Hugging Face from a cache of the same context. Both are float32, draw by
their scores, have the same cores and write in turns. So do groups of several sizes (--rows=1,8), which tells
what slots gain: `gain` and `cpu_gain` are ids a second, and a CPU-second, over those of the first size. Only
the loops import jax or torch, in the process that is measured.
"""
import argparse
import os
import shutil
import statistics
import sys
import time

import bench_turns

KINDS = ("decode",)
CONFIG = "configs/memory_40m.py"
PEER = "transformers"
TABLE = (("system", 12), ("context", 8), ("rows", 4), ("tokens_per_s", 12), ("tokens_per_cpu_s", 16),
         ("state_bytes", 12), ("read_tokens_per_s", 17), ("params", 10), ("ratio", 6), ("gain", 6),
         ("cpu_gain", 8))


def add_flags(kinds, positive) -> list[argparse.ArgumentParser]:
  """Adds the measurement; gives its parser, without --repeats and --json."""
  made = kinds.add_parser("decode", help="writing behind a context", allow_abbrev=False)
  flag = made.add_argument
  flag("--config", default=CONFIG, help="FILE or FILE:ARGUMENTS of the model, as for training")

  def several(text):
    return [positive(part) for part in text.split(",")]

  flag("--lengths", type=several, default=[4096, 32768], help="ids of the context, which are read before")
  flag("--rows", type=several, default=[1], help="completions written at once: the rows of a group of slots")
  flag("--piece", type=positive, default=256, help="ids of the context read at once")
  flag("--new_tokens", type=positive, default=32, help="ids of each completion that are timed together")
  flag("--peer", action="store_true", help="measure `generate` of Hugging Face, turn by turn")
  flag("--peer_python", default=sys.executable, help="a Python that has transformers and torch")
  return [made]


def specs(args, overrides: dict) -> list[dict]:
  """Returns what is measured together: one length of context in each.

  Raises:
    ValueError: for a Python that is not there.
  """
  if args.peer and shutil.which(args.peer_python) is None:
    raise ValueError(f"--peer_python={args.peer_python} is no program; give the Python that has {PEER}")
  overrides = {"model.dtype": "float32", **overrides}
  shape = {name: getattr(args, name) for name in ("rows", "piece", "new_tokens", "repeats", "config")}
  cores = str(len(os.sched_getaffinity(0)))
  env = {"NPROC": cores, "OMP_NUM_THREADS": cores, "JAX_NUM_CPU_DEVICES": "1", "HF_HUB_OFFLINE": "1",
         "TRANSFORMERS_VERBOSITY": "error"}
  return [dict(side="decode", system="atlas_jax", script="bench_decode.py", length=length,
               overrides=overrides, core=None, env=env, peer=args.peer, peer_python=args.peer_python, **shape)
          for length in args.lengths]


def measure(spec: dict, side_of) -> list[dict]:
  """Measures one length; gives a row per system.

  Args:
    spec: what, of `specs`.
    side_of: starts the process of a spec, see `bench.Side`.
  """
  asked = []
  sides: list = []
  try:
    for rows in spec["rows"]:
      asked.append({**spec, "rows": rows})
      sides.append(side_of(asked[-1]))
      if spec["peer"]:  # One for each of ours, which it follows.
        asked.append({**asked[-1], "system": PEER, "python": spec["peer_python"], "ours": sides[-1].info})
        sides.append(side_of(asked[-1]))
    for _ in range(bench_turns.WARM_STEPS + spec["repeats"]):
      for side in sides:
        side.go("go", side.times)
  finally:
    for side in sides:
      side.child.close()
  found = [row_of(one, side) for one, side in zip(asked, sides, strict=True)]
  ours = [row for row in found if row["system"] != PEER]
  for row, other in zip(ours, [row for row in found if row["system"] == PEER], strict=False):
    compare(row, other, ratio="tokens_per_s")
  for row in ours[1:]:
    compare(row, ours[0], gain="tokens_per_s", cpu_gain="tokens_per_cpu_s")
  return found


def compare(row: dict, other: dict, **figures: str) -> None:
  """Notes a row's figures over another's, under new names; nothing where one of them failed."""
  for name, figure in figures.items():
    if row[figure] and other[figure]:
      row[name] = round(row[figure] / other[figure], 2)


def row_of(spec: dict, side) -> dict:
  """Makes the row of what was measured in a system's process."""
  row = {"name": "decode", "system": spec["system"], "context": spec["length"],
         **dict.fromkeys([name for name, _ in TABLE[2:]]), "rows": spec["rows"]}
  info = side.info
  if side.works:
    steady = side.times[bench_turns.WARM_STEPS:]
    tokens = spec["rows"] * spec["new_tokens"]
    for name, unit in (("tokens_per_s", "wall_s"), ("tokens_per_cpu_s", "cpu_s")):
      row[name] = round(tokens / statistics.median(each[unit] for each in steady), 1)
    row |= {"state_bytes": info["state_bytes"], "params": info["params"],
            "read_tokens_per_s": round(spec["length"] / info["read_s"], 1),
            "peak_memory_mib": round(side.times[-1]["peak_memory_mib"], 1)}
  else:
    row |= {"error": info["error"], "refused": bool(info.get("known"))}
  return {**row, **{name: spec[name] for name in ("config", "overrides", "piece", "new_tokens", "repeats")},
          "device": info.get("device"), "versions": info.get("versions", {}),
          "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
          "load_average": round(os.getloadavg()[0], 1)}


# ------------------------------------------------------------------------- in the process that is measured


def ours(spec: dict, turns: bench_turns.Turns) -> None:
  """Writes on with a model of ours."""
  import bench_child
  import jax
  import numpy as np

  from atlas_jax import config as configs
  from atlas_jax import tree
  from atlas_jax.command import read_config
  from atlas_jax.language import initial_model
  from atlas_jax.language.decoding import drawing, programs
  from atlas_jax.language.decoding.requests import CompletionRequest

  config = configs.resolve(read_config(spec["config"], spec["overrides"]))
  language = initial_model.drawn(config)
  params = jax.jit(language.init)(jax.random.key(0))
  # The context, and all that is written behind it.
  room = spec["length"] + spec["new_tokens"] * (spec["repeats"] + bench_turns.WARM_STEPS + 1)
  shapes = programs.Shapes(spec["rows"], spec["piece"], None if language.token_axes is None else room)
  made = programs.make(language, shapes)
  tokens = np.random.default_rng(0).integers(0, language.vocab_size, spec["length"]).astype(np.int32)
  row = made.blank()
  jax.block_until_ready(made.read(params, row, tokens[:spec["piece"]]))  # Compiles.
  start = bench_child.clock()
  for at in range(0, len(tokens), spec["piece"]):
    row, hidden_BD = made.read(params, row, tokens[at:at + spec["piece"]])
  jax.block_until_ready(row)
  read_s = bench_child.since(start)["wall_s"]
  state, draws = made.group()
  for slot in range(spec["rows"]):
    request = CompletionRequest((0,), seed=slot)
    first, _ = made.first(params, hidden_BD, programs.place(drawing.start(request, 0, language.vocab_size)))
    state, draws = made.insert(state, draws, np.int32(slot), row, first)
  turns.info = {"params": tree.count(params), "read_s": read_s, "device": bench_child.processor(),
                "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(row)),
                "versions": bench_child.versions("jax", "jaxlib", "flax", "numpy"),
                "shape": {name: getattr(language.module, name)
                          for name in ("vocab_size", "width", "depth", "heads")}}
  while True:
    turns.step()
    for _ in range(spec["new_tokens"]):
      state, draws, drawn = made.step(params, state, draws)
      np.asarray(drawn.token_B)  # As a server reads each id before it draws the next.


def peer(spec: dict, turns: bench_turns.Turns) -> None:
  """Writes on with a Transformer of equal size."""
  import bench_child
  import torch
  import transformers

  if "error" in spec["ours"]:
    raise RuntimeError("ours could not be measured, and tells the size of the peer")
  torch.manual_seed(0)
  shape = spec["ours"]["shape"]
  width = shape["width"]
  depth = shape["depth"]
  # What embedding, attention and norms leave for the three matrices of each feed-forward layer.
  rest = spec["ours"]["params"] - shape["vocab_size"] * width - depth * (4 * width**2 + 2 * width) - width
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=shape["vocab_size"], hidden_size=width, num_hidden_layers=depth,
      num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"],
      intermediate_size=max(1, round(rest / (depth * 3 * width))), tie_word_embeddings=True,
      max_position_embeddings=2 * spec["length"] + 4096, bos_token_id=None, eos_token_id=None)).eval()
  ids_BT = torch.randint(0, shape["vocab_size"], (spec["rows"], spec["length"] + 1))
  cache = transformers.DynamicCache()
  with torch.inference_mode():
    start = bench_child.clock()
    for at in range(0, spec["length"], 512):
      model(ids_BT[:, at:min(at + 512, spec["length"])], past_key_values=cache, use_cache=True,
            logits_to_keep=1)
    read_s = bench_child.since(start)["wall_s"]
    turns.info = {"params": sum(one.numel() for one in model.parameters()), "read_s": read_s,
                  "device": bench_child.processor(), "versions": bench_child.versions("torch", PEER),
                  "state_bytes": 2 * depth * spec["length"] * width * 4}
    while True:
      turns.step()
      cache.crop(spec["length"] - cache.get_seq_length())  # By a negative number: so many are taken off.
      model.generate(ids_BT, past_key_values=cache, do_sample=True, top_k=0, use_cache=True,
                     max_new_tokens=spec["new_tokens"], min_new_tokens=spec["new_tokens"],
                     attention_mask=torch.ones_like(ids_BT), pad_token_id=0)


if __name__ == "__main__":
  sys.exit(bench_turns.main({("atlas_jax", "decode"): ours, (PEER, "decode"): peer}))
