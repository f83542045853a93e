"""Language model of 40M parameters with a memory of what came before, and its small siblings.

One block has a memory of pairs, the context before a token and the token: `atlas_jax/memory/projections.py`.
It is trained in episodes (`atlas_jax/recipes/episodic.py`): some rows store things in real text and ask for
them where attention does not see them, the others read the corpus. With `pretrain` all rows read the corpus.
40,131,875 parameters at a vocabulary of 32,000. It has not been trained to its end yet: no accelerator was at
hand. Its text and vocabulary are prepared once, the first with a network, the second without:

  python scripts/prepare_text.py --name=lm1b --train_vocab_size=32000 --tokenizer=runs/lm1b_32k
  python scripts/prepare_text.py --train_vocab_size=32000 --tokenizer=runs/python_stdlib_32k

  python -m atlas_jax.main --config=configs/memory_40m.py --workdir=runs/memory_40m
  python -m atlas_jax.main --config=configs/memory_40m.py:corpus=python_stdlib --workdir=runs/stdlib_40m

Siblings, on the bytes of the running Python's standard library, ready without preparation:

  python -m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart
  python -m atlas_jax.main --config=configs/memory_40m.py:cpu_1h --workdir=runs/cpu_1h
  python -m atlas_jax.main --config=configs/memory_40m.py:smoke --workdir=runs/smoke

With `mix=NAME` memory enters the blocks in another way, at as many parameters within 3% (:cpu,mix=context);
the names are the files of atlas_jax/models/blocks. `only` has a memory in all blocks and no attention, its
values under their own tokens' keys; e2e trains second feed-forward layers in the last quarter of the blocks.

cpu has 2,266,004 parameters and takes some minutes on two cores, cpu_1h about an hour, smoke seconds. With
`rule=NAME` the memory follows another rule than delta. With `baseline` (as in :cpu,baseline) there is no
memory, and the width is raised to as many parameters. With `paper` all blocks have the memory of Titans with
a value under its own token's key and reads of unit mean square, as its paper has them, at as many parameters;
--config.model.memory.options.residual=True and .fade_to=zero complete it. `cells=N` is into how many cells a
key is lifted, in groups of 256 where 256 divides them and in one else, 2,048 for cpu and cpu_1h and 256 else.
Results: docs/results.md.

What the memory gains is compared with controls of as many parameters within 1.1%, the same depth, width,
window and tokens (:cpu,control=static, and so on for the others and sizes):

  static   the same layer, whose memory is a learned table that is never written
  conv     the same projections, convolutions and values, without a memory
  ngram    no memory; embeddings of the hashed n-grams of 2 to 5 tokens
  wide     no memory; a wider feed-forward layer
  compute  wide, and as many more updates as the memory costs CPU-seconds; for cpu and cpu_1h
"""
import math

from atlas_jax import config as base
from atlas_jax.fields import mixes

# Of models without memory, of plain pretraining and of episodes; written by scripts/record_baseline.py.
RECORDED = "experiments/memory_pays/baseline_quickstart.json"
RECORDED_EPISODIC = "experiments/memory_pays/baseline_episodic.json"
FF_WIDTHS = {  # By mix, for as many parameters as `gate`.
    "full": {"gate": 1_744, "layer": 1_744, "context": 1_728, "only": 1_792,
             "e2e": 1_648, "none": 1_808, "conv": 1_744},
    "cpu": {"gate": 672, "layer": 672, "context": 656, "only": 784, "e2e": 640, "none": 704, "conv": 672}}
GROUPED_CELLS = 256  # Of one softmax; more cells are more groups.
CONTROLS = ("static", "conv", "ngram", "wide", "compute")
# CPU-seconds per update of :cpu over those of a model without memory: 1.24, 1.58 and 1.87 on 2026-11-29, on
# one thread of a machine with two cores, the more the busier it was (NPROC=1 python scripts/update_cost.py
# configs/memory_40m.py:cpu configs/memory_40m.py:cpu,baseline). To be measured anew when the layer changes.
COST_OF_MEMORY = 1.58


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, cpu_1h=False, pretrain=False, baseline=False, paper=False, smoke=False,
                       rule="", mix="", control="", cells=0, corpus="lm1b")
  _check(arg)
  config = base.default()
  config.recipe = "memory_lm" if arg.pretrain else "episodic"
  if arg.cpu or arg.cpu_1h:
    _cpu(config)
  else:
    _full(config, arg.corpus)
  if arg.cpu_1h:
    config.optim.update(warmup_steps=100, steps=4_000)
    config.train.update(log_every_steps=20, eval_every_steps=2_000)
    config.checkpoint.update(every_steps=500)
    config.eval.update(max_tokens=None, gain_max_tokens=131_072)
  if arg.baseline:
    config.eval.gain_max_tokens = base.default().eval.gain_max_tokens  # There is no memory to measure.
    width, ff_width, heads = (208, 608, 4) if arg.cpu or arg.cpu_1h else (512, 1_248, 8)
    config.model.update(memory_mix="none", memory_layers=None, width=width, ff_width=ff_width, heads=heads)
  if arg.paper:
    _paper(config, small=arg.cpu or arg.cpu_1h)
  if arg.mix:
    small = arg.cpu or arg.cpu_1h
    base.set_mix(config, arg.mix, base.default(), ff_widths=FF_WIDTHS["cpu" if small else "full"],
                 inner_width=256 if small else 640)
  if arg.rule not in ("", config.model.memory.rule):
    config.model.memory.update(rule=arg.rule)
    config.model.memory.options = {}
  if not arg.pretrain:
    _episodic(config, small=arg.cpu or arg.cpu_1h)
    if arg.cpu:
      config.optim.steps = 250  # 400 took 8 to 9 minutes on two cores; these are to take six.
  cells = arg.cells or (2_048 if arg.cpu or arg.cpu_1h else 0)
  if arg.control:
    _control(config, arg.control, cells, small=arg.cpu or arg.cpu_1h)
  # Behind the controls, which may leave nothing that reads them.
  if cells:
    _set_cells(config, cells, asked=arg.cells)
  if not arg.pretrain:  # That of the last phase, with which the model is used; without a gate there is none.
    base.set_read(config, {"model.gate_floor": 0.05})
  if arg.smoke:
    config.eval.baselines = True
    return base.shrink(config)
  # A run without memory has no other; that of another window or other places of documents is none to compare.
  comparable = arg.control in ("", "static") and arg.mix in ("", "gate", "layer") and not arg.baseline
  if arg.cpu and comparable:
    config.eval.baseline = RECORDED if arg.pretrain else RECORDED_EPISODIC
  return config


def _check(arg):
  """Refuses arguments of which one would be ignored."""
  base.choose(arg, "shifted", "baseline", "paper", "control", "mix")
  base.choose(arg, "full", "cpu", "cpu_1h")
  for name in ("baseline", "control"):
    if arg[name] and arg.rule:
      raise ValueError(f"config arguments {name!r} and 'rule={arg.rule}' exclude each other: both are "
                       "compared with the memory of the delta rule")
  _check_control(arg)
  if arg.rule and arg.mix in ("none", "conv", "e2e"):
    raise ValueError(f"config arguments 'mix={arg.mix}' and 'rule={arg.rule}' exclude each other: that mix "
                     "has no memory that follows a rule")
  for name in ("cpu", "cpu_1h", "smoke"):
    if arg[name] and arg.corpus != "lm1b":
      raise ValueError(f"config arguments 'corpus={arg.corpus}' and {name!r} exclude each other: {name} "
                       "reads the standard library; set --config.data.name for another corpus")


def _full(config, corpus: str):
  config.data.update(name=corpus, tokenizer=f"runs/{corpus}_32k", segment_len=2_048, batch_rows=16)
  config.model.update(vocab_size=32_000, width=448, depth=8, heads=7, ff_width=1_744, window_tokens=256,
                      remat="block", memory_layers="1")
  config.model.memory.update(heads=7, key_dim=64, value_dim=64, chunk_size=64)
  config.loss.block_tokens = 4_096
  config.optim.update(lr=1e-3, warmup_steps=1_000, steps=40_000)
  config.train.update(log_every_steps=50, eval_every_steps=2_000)
  config.checkpoint.update(every_steps=1_000)
  # Replaying the whole run to count trigrams would take longer than it tells.
  config.eval.update(batch_rows=16, max_tokens=2_000_000, baselines=False)


def _episodic(config, *, small: bool):
  """Episodes in half of the rows, each in one segment, of which attention sees the last part."""
  if small:
    config.data.update(segment_len=512, batch_rows=4)
    # Two tasks: all four are not learnt in so few updates.
    config.episode.update(tasks="key_value,passkey", most_items=4, curriculum_steps=90)
    config.eval.update(episode_items="1,4", episode_distances="256,1024")
    return
  config.data.update(segment_len=1_024, batch_rows=48)
  config.train.update(accumulate_steps=2, eval_every_steps=500)
  config.optim.update(warmup_steps=500, steps=5_000)
  config.eval.update(episode_items="1,5", episode_distances="2048,8192")


def _set_cells(config, cells: int, *, asked: int):
  """Sets the cells of a memory whose keys are lifted to them; of others it is refused if it was asked for."""
  options = config.model.memory.options
  lifted = "feature_map" in options and options.feature_map == "cells"
  if lifted and config.model.memory_mix in mixes("fast_weights"):
    groups = 1 if cells % GROUPED_CELLS else cells // GROUPED_CELLS
    options.update(feature_dim=cells, cell_groups=groups)
  elif asked:
    raise ValueError(f"config arguments 'cells={asked}' and those beside it exclude each other: this model "
                     "has no memory whose keys are lifted to cells; leave cells out")


def _paper(config, *, small: bool):
  """Memories in all blocks, whose keys, values and queries all come from the same token."""
  config.model.memory_layers = None
  config.model.memory.update(rule="titans", conv_taps=4, shift=False, shared_qk=False, activation="silu",
                             value_source="input", conv_init="identity", initial="learned", read_norm="rms")
  config.model.memory.options = {}
  config.model.ff_width = 512 if small else 1_152


def _check_control(arg):
  if not arg.control:
    return
  if arg.control not in CONTROLS:
    raise ValueError(f"config argument 'control={arg.control}' is unknown; "
                     f"{base.nearest(arg.control, CONTROLS)}")
  if arg.control == "compute" and (arg.smoke or not (arg.cpu or arg.cpu_1h)):
    raise ValueError("config argument 'control=compute' and the full size or 'smoke' exclude each other: "
                     "what the memory costs was measured on a CPU; write cpu,control=compute")


def _control(config, control: str, cells: int, *, small: bool):
  """One of `CONTROLS`; feed-forward widths make up for the parameters that a memory has."""
  if control == "static":  # The table itself are the parameters that the flagship's start, zero, has not.
    memory, model = config.model.memory, config.model
    memory.update(initial="learned", writes=False)
    table = memory.heads * (cells or memory.options.feature_dim) * memory.value_dim
    model.ff_width -= 4 * math.ceil(table / (4 * 3 * model.width * model.depth))
    return
  config.eval.gain_max_tokens = base.default().eval.gain_max_tokens  # There is no memory to measure.
  if control == "conv":
    config.model.memory_mix = "conv"
    return
  config.model.memory_layers = None
  config.model.memory_mix = "none"
  config.model.ff_width = 704 if small else 1_800
  if control == "ngram":
    config.model.ff_width = 512 if small else 1_408
    config.model.ngram_embed.update(max_n=5, table_rows=576 if small else 2_304)
  if control == "compute":
    config.optim.steps = round(COST_OF_MEMORY * config.optim.steps)


def _cpu(config):
  config.data.update(segment_len=256, batch_rows=8)
  config.model.update(width=192, depth=4, heads=4, ff_width=672, window_tokens=64, dtype="float32",
                      scan_unroll=4, memory_layers="1")
  config.model.memory.update(heads=4, key_dim=32, value_dim=32, chunk_size=32)
  config.optim.update(lr=3e-3, warmup_steps=30, steps=300)
  config.train.update(log_every_steps=5)
  config.checkpoint.update(every_steps=150)
  config.eval.update(batch_rows=8, max_tokens=100_000, gain_max_tokens=32_768)
