"""A model of two layers that has to recall pairs.  Results: README of this folder.

  python -m experiments.mqar.run --workdir=runs/mqar --out=runs/mqar.json --rules=delta

That trains rule=delta and rule=delta,writes_off. The program itself refuses these configs: their vocabulary
is that of the task, smaller than any tokenizer's.
"""
from atlas_jax import config as base

LINEAR = {"depth": 1, "residual": False, "fade_to": "zero"}  # One matrix per head, as delta has.
OPTIONS = {"titans": LINEAR, "omega": LINEAR, "atlas": LINEAR}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, rule="titans", writes_off=False, pairs=8, n_keys=16, chunk_size=8, steps=300,
                       seed=0)
  config = base.default()
  config.recipe, config.seed = "experiments.mqar.recipe", arg.seed
  config.data.update(source="experiments.mqar.task", name=f"keys:{arg.n_keys}", segment_len=4 * arg.pairs,
                     batch_rows=64, carry=False)
  config.model.update(vocab_size=2 * arg.n_keys, width=64, depth=2, heads=2, ff_width=64, window_tokens=2,
                      dtype="float32")
  config.model.memory.update(rule=arg.rule, heads=2, key_dim=32, value_dim=32, chunk_size=arg.chunk_size,
                             conv_taps=2, retention_init=0.999, momentum_init=0.1, write_rate_init=0.5,
                             write_rate_max=1.0, half_life_spread=1.0, shift=False, shared_qk=False,
                             activation="silu", value_source="input", conv_init="identity",
                             initial="learned", read_norm="rms")
  options = OPTIONS[arg.rule] if arg.rule in OPTIONS else {}
  if arg.writes_off:
    config.model.memory.rule = "experiments.mqar.read_only"
    options = {"rule": arg.rule, "options": options}
  config.model.memory.options = options
  config.optim.update(lr=1e-2, warmup_steps=20, steps=arg.steps, schedule="wsd", decay_frac=0.3,
                      weight_decay=0.0)
  config.train.update(log_every_steps=25, eval_every_steps=25)
  config.checkpoint.update(every_steps=100_000)
  config.eval.update(batch_rows=128, max_tokens=128 * 4 * 4 * arg.pairs)
  config.monitor.update(progress=False, tensorboard=False)
  return config
