"""A small model trained plainly or with episodes, with faults of the original system.  Results: README here.

  python -m atlas_jax.main --config=experiments/gate_collapse/config.py:faults=no_grad --workdir=runs/no_grad

`train` is "episodic", or "plain" for next-token training. `faults` names those of FAULTS that are switched
on, with + between them. They live here and in `recipe`, `faults` and the two rules beside them, and nowhere
else.
"""
from atlas_jax import config as base

FAULTS = {
    "look_ahead": "in training every token reads the memory as the whole segment leaves it",
    "no_grad": "what is written gets no gradient: keys, values, gates of writing",
    "diverging": "inner steps too long to converge, held by a clip of the memory's norm",
    "clamp": "the gate's floor is the greater of both, max(g, floor), without a gradient below it",
    "shut": "gates start shut, at a bias of -6",
    "copy_loss": "in place of answers, the loss of saying each token of an episode when it is read",
    "visible": "what is asked for stands within attention's window",
    "fast_gates": "gates at five times the learning rate",
    "convex": "the gate takes from attention what it gives to memory, as in the original",
    "paper": "no shift: a value is under its own token's key, with queries of their own and SiLU",
    "original_keys": "the original's keys: as of paper, without SiLU, of the last two tokens",
}
RULES = "experiments.gate_collapse"
TASKS = ("key_value", "passkey")
STEPS = 160
PAPER = dict(shift=False, shared_qk=False, value_source="input", conv_init="identity")


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, train="episodic", faults="")
  faults = tuple(filter(None, arg.faults.split("+")))
  _check(arg.train, faults)
  config = base.default()
  config.recipe = "experiments.gate_collapse.recipe"
  config.data.update(segment_len=512, batch_rows=4, limit_bytes=4_000_000)
  config.data.options = {"train": arg.train, "faults": arg.faults}
  config.model.update(width=96, depth=2, heads=3, ff_width=256, window_tokens=32, dtype="float32",
                      gate_floor=0.05 if arg.train == "episodic" else 0.0)
  config.model.memory.update(heads=2, key_dim=32, value_dim=32, chunk_size=32)
  config.model.memory.options.feature_dim = 128
  # Attention reaches 62 tokens back through both blocks: what is asked for stands farther.
  config.episode.update(tasks=",".join(TASKS), most_items=3, least_distance=64, curriculum_steps=40)
  config.optim.update(lr=3e-3, warmup_steps=16, steps=STEPS, weight_decay=0.0)
  config.train.update(log_every_steps=8, eval_every_steps=40)
  config.checkpoint.update(every_steps=100_000, keep_best=0)
  config.eval.update(batch_rows=8, max_tokens=8_192, gain_max_tokens=12_288, baselines=False, sample_tokens=0,
                     episode_items="2", episode_distances="96,384", task_samples=8)
  config.monitor.update(progress=False, tensorboard=False, report=False)
  for fault in faults:
    _add(config, fault)
  if "no_grad" in faults:  # Around whichever rule the others chose.
    memory = config.model.memory
    inner = {"rule": memory.rule, "options": memory.options.to_dict()}
    memory.rule, memory.options = f"{RULES}.no_grad", inner
  return config


def _check(train: str, faults) -> None:
  if train not in ("episodic", "plain"):
    raise ValueError(f"config argument 'train={train}' is unknown; "
                     f"{base.nearest(train, ('episodic', 'plain'))}")
  for fault in faults:
    if fault not in FAULTS:
      raise ValueError(f"config argument 'faults={'+'.join(faults)}' names {fault!r}; "
                       f"{base.nearest(fault, FAULTS)}")
  if train == "plain" and (ignored := [fault for fault in faults if fault in ("copy_loss", "visible")]):
    raise ValueError(f"config arguments 'train=plain' and 'faults={ignored[0]}' exclude each other: nothing "
                     "is asked in plain text")


def _add(config, fault: str) -> None:
  """Changes the fields that a fault consists of; the others are made by `recipe`."""
  memory = config.model.memory
  if fault == "diverging":
    memory.rule, memory.options = f"{RULES}.original_memory", {}
  if fault == "visible":
    config.episode.update(most_items=1, least_distance=0, most_distance=0)
  if fault == "fast_gates":
    config.optim.gate_lr_scale = 5.0
  if fault == "paper":
    memory.update(**PAPER, activation="silu", conv_taps=4, read_norm="rms")
  if fault == "original_keys":
    memory.update(**PAPER, activation="none", conv_taps=2)
  if fault in ("paper", "original_keys"):
    config.model.ff_width = 232  # For as many parameters: queries have their own.
