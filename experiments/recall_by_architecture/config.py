"""A small model that has to recall pairs, or needles, past its window.  Results: README of this folder.

  python -m atlas_jax.main --config=experiments/recall_by_architecture/config.py:mix=gate --workdir=runs/gate

`mix` is how memory is mixed with attention, a file of models/blocks. Attention sees 16 tokens in each of two
blocks, hence 30 back; what is asked for stands at least 64 before its question. A model
is trained for one task, `task`:

  mqar   pairs of 32 keys and values, with filler up to 192 tokens
  niah   needles, each among three others, in texts of at most 384 tokens of Python's library

The tokens of answers alone count. Both are asked of texts that are up to 16 times as long.
"""
from atlas_jax import config as base

LONGEST = 384  # Tokens of a needle text in training.
FARTHEST = 192  # Tokens between pairs and questions in training.
OPTIONS = {
    "mqar": {"tasks": "mqar", "mqar_pairs": "4,8,16", "mqar_distances": f"64,128,{FARTHEST}",
             "mqar_symbols": 32},
    # A needle without others is asked for as well, and not trained: the harder kind teaches all it needs.
    "niah": {"tasks": "niah", "niah_kinds": "multi_key", "niah_lengths": f"192,256,{LONGEST}",
             "niah_depths": "0,0.25,0.5,0.75,1", "task_gap_tokens": 64}}
ASKED = {
    "mqar": {"mqar_pairs": "4,16", "mqar_distances": f"{FARTHEST},{16 * FARTHEST}", "mqar_symbols": 32},
    "niah": {"niah_kinds": "single_2,multi_key", "niah_depths": "0,0.5,1", "task_gap_tokens": 64,
             "niah_lengths": f"{LONGEST},{4 * LONGEST},{16 * LONGEST}"}}
STEPS = {"mqar": 240, "niah": 240}
# What is kept small where only the machinery is tried.
SMOKE = {"mqar": {"mqar_pairs": "2", "mqar_distances": "64"},
         "niah": {"niah_kinds": "single_2", "niah_lengths": "192", "niah_depths": "0.5"}}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, mix="gate", task="niah", smoke=False)
  if arg.task not in OPTIONS:
    raise ValueError(f"config argument 'task={arg.task}' is unknown; {base.nearest(arg.task, OPTIONS)}")
  small = SMOKE[arg.task] if arg.smoke else {}
  config = base.default()
  config.data.update(source="recall_tasks", segment_len=512, batch_rows=8, limit_bytes=4_000_000)
  config.data.options = {**OPTIONS[arg.task], **small}
  config.model.update(width=96, depth=2, ff_width=256, dtype="float32", scan_unroll=2, memory_mix=arg.mix)
  if arg.mix != "only":  # Without attention there are no heads of it, and no window.
    config.model.update(heads=2, window_tokens=16)
  if arg.mix == "e2e":  # It steps once per mini-batch, of as many tokens as attention sees.
    config.model.inner.update(batch_tokens=16, ff_width=256)
  else:
    # A segment of `context` is a window of attention, and holds whole chunks.
    chunk = 16 if arg.mix == "context" else 32
    config.model.memory.update(heads=4, key_dim=32, value_dim=32, chunk_size=chunk)
  config.optim.update(lr=3e-3, warmup_steps=2 if arg.smoke else 20, steps=2 if arg.smoke else STEPS[arg.task],
                      schedule="wsd", decay_frac=0.3, weight_decay=0.0)
  config.train.update(log_every_steps=1 if arg.smoke else 20)
  config.checkpoint.update(every_steps=100_000)
  config.eval.update(batch_rows=8, max_tokens=8 * 512 * (1 if arg.smoke else 8), baselines=False,
                     sample_tokens=0, tasks=arg.task, task_samples=2 if arg.smoke else 16,
                     **{**ASKED[arg.task], **small})
  if arg.mix != "none":
    config.eval.gain_max_tokens = 8 * 512  # Without a memory there is nothing to measure.
  has_memory = arg.mix not in ("none", "e2e")
  if arg.task == "mqar":  # A pair is one token after another: longer contexts of a key only hide it.
    config.optim.lr = 5e-3
    if has_memory:
      config.model.memory.conv_taps = 2
  elif has_memory:
    keep_what_is_rare(config)
  config.monitor.update(progress=False, tensorboard=False)
  return config


def keep_what_is_rare(config) -> None:
  """Starts a memory that hardly writes and never fades, with keys as long as the names of needles.

  Texts of training are too short to teach that filler must not be written: a gate that starts half open stays
  so, and in long texts what follows writes over a needle. From nearly shut, gates that learn ten times as
  fast open for the tokens of answers.
  """
  memory = config.model.memory
  # A chunk holds all that the convolutions look back at: 16 tokens with `context`.
  memory.update(write_rate_init=0.02, retention_init=0.999999, half_life_spread=1.0,
                conv_taps=min(20, memory.chunk_size))
  config.optim.gate_lr_scale = 10.0
