"""A model of one block that has to recall pairs over a thousand tokens.  Results: README of this folder.

`run` trains it. Rules have their own gates and options; widths are chosen for equal states, see `sizes`. With
`none` there is no memory, with `unwritten` nothing is ever written.
"""
from atlas_jax import config as base
from experiments.rules_on_recall import sizes, task


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, rule="delta", none=False, unwritten=False, steps=120, lr=1e-2, rows=4, seed=0)
  config = base.default()
  config.recipe, config.seed = "experiments.rules_on_recall.recipe", arg.seed
  config.data.update(source="experiments.rules_on_recall.task", name="far", segment_len=1_024,
                     batch_rows=arg.rows, carry=False)
  config.model.update(vocab_size=task.VOCAB, width=64, depth=1, heads=2, ff_width=128, window_tokens=4,
                      dtype="float32")
  width = sizes.width_of(arg.rule)
  config.model.memory.update(rule=arg.rule, heads=2, key_dim=width, value_dim=width, chunk_size=sizes.CHUNK,
                             conv_taps=2)
  config.model.memory.options = sizes.OPTIONS.get(arg.rule, {})
  if arg.none:
    config.model.memory_mix = "none"
  if arg.unwritten:
    config.model.memory.update(writes=False, initial="learned")
  config.optim.update(lr=arg.lr, warmup_steps=10, steps=arg.steps, schedule="wsd", decay_frac=0.3,
                      weight_decay=0.0)
  config.train.update(log_every_steps=10)
  config.checkpoint.update(every_steps=100_000)
  config.eval.update(batch_rows=16, max_tokens=4 * 16 * 1_024)
  config.monitor.update(progress=False, tensorboard=False)
  return config
