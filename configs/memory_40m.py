"""Titans-memory language model of 40M parameters, and its small siblings.  Results: README, Measured.

40,177,312 parameters at a vocabulary of 32,000. It has not been trained to its end yet: no accelerator was at
hand. Its text and vocabulary are prepared once, the first with a network, the second without:

  python scripts/prepare_text.py --name=lm1b --train_vocab_size=32000 --tokenizer=runs/lm1b_32k
  python scripts/prepare_text.py --train_vocab_size=32000 --tokenizer=runs/python_stdlib_32k

  python -m atlas_jax.main --config=configs/memory_40m.py --workdir=runs/memory_40m
  python -m atlas_jax.main --config=configs/memory_40m.py:corpus=python_stdlib --workdir=runs/stdlib_40m

Siblings, on the bytes of the running Python's standard library, ready without preparation:

  python -m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart
  python -m atlas_jax.main --config=configs/memory_40m.py:cpu_1h --workdir=runs/cpu_1h
  python -m atlas_jax.main --config=configs/memory_40m.py:smoke --workdir=runs/smoke

cpu has 2,265,024 parameters and takes some minutes on two cores, cpu_1h about an hour, smoke seconds. With
`baseline` (as in :cpu,baseline) there is no memory, and the width is raised to as many parameters. With
`shift` one block has a memory of pairs, the context before a token and the token, in place of them all. With
`rule=NAME` the memories follow another rule than titans.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, cpu_1h=False, baseline=False, shift=False, smoke=False, rule="",
                       corpus="lm1b")
  base.choose(arg, "all", "baseline", "shift")
  base.choose(arg, "full", "cpu", "cpu_1h")
  if arg.shift and arg.rule:
    raise ValueError(f"config arguments 'shift' and 'rule={arg.rule}' exclude each other: the shift comes "
                     "with a delta memory; change it with --config.model.memory.rule and .options")
  for name in ("cpu", "cpu_1h", "smoke"):
    if arg[name] and arg.corpus != "lm1b":
      raise ValueError(f"config arguments 'corpus={arg.corpus}' and {name!r} exclude each other: {name} "
                       "reads the standard library; set --config.data.name for another corpus")
  config = base.default()
  config.recipe = "memory_lm"
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
    config.model.update(memory_mix="none", width=width, ff_width=ff_width, heads=heads)
  if arg.rule not in ("", config.model.memory.rule):
    config.model.memory.update(rule=arg.rule)
    config.model.memory.options = {}
  if arg.shift:
    _shift(config, small=arg.cpu or arg.cpu_1h)
  if arg.smoke:
    config.eval.baselines = True
    return base.shrink(config)
  return config


def _full(config, corpus: str):
  config.data.update(name=corpus, tokenizer=f"runs/{corpus}_32k", segment_len=2_048, batch_rows=16)
  config.model.update(vocab_size=32_000, width=448, depth=8, heads=7, ff_width=1_152, window_tokens=256,
                      remat="block")
  config.model.memory.update(heads=7, key_dim=64, value_dim=64, chunk_size=64)
  config.loss.block_tokens = 4_096
  config.optim.update(lr=1e-3, warmup_steps=1_000, steps=40_000)
  config.train.update(log_every_steps=50, eval_every_steps=2_000)
  config.checkpoint.update(every_steps=1_000)
  # Replaying the whole run to count trigrams would take longer than it tells.
  config.eval.update(batch_rows=16, max_tokens=2_000_000, baselines=False)


def _shift(config, *, small: bool):
  """One memory of pairs (context before a token, token), in place of memories in all blocks."""
  config.model.memory_layers = "1"
  config.model.memory.update(rule="delta", conv_taps=6, shift=True, shared_qk=True, activation="none",
                             value_source="token", conv_init="ngram", initial="zero", read_norm="none",
                             write_rate_init=0.5)
  config.model.memory.options = dict(momentum=False, feature_map="cells", feature_dim=256)
  config.model.ff_width = 672 if small else 1_744


def _cpu(config):
  config.data.update(segment_len=256, batch_rows=8)
  config.model.update(width=192, depth=4, heads=4, ff_width=512, window_tokens=64, dtype="float32",
                      scan_unroll=4)
  config.model.memory.update(heads=4, key_dim=32, value_dim=32, chunk_size=32)
  config.optim.update(lr=3e-3, warmup_steps=30, steps=360)
  config.train.update(log_every_steps=5)
  config.checkpoint.update(every_steps=180)
  config.eval.update(batch_rows=8, max_tokens=100_000, gain_max_tokens=32_768)
