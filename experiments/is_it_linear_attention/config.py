"""The two settings of the study, with a memory rule of which one part is changed.  Results: README here.

  python -m atlas_jax.main --config=experiments/is_it_linear_attention/config.py:rule=titans,change=ascent \\
      --workdir=runs/ascent

By default the small language model of `experiments.what_makes_memory_pay`, with fewer updates; `recall` gives
the model and the texts of `experiments.rules_on_recall`, which `run` trains. Beside the changes of `changed`
there is "own_queries": queries have a projection and a convolution of their own; by default they are the
keys' too.
"""
from atlas_jax import config as base
from configs import memory_40m
from experiments.rules_on_recall import config as far_recall
from experiments.what_makes_memory_pay.run import SIZE

CELLS = {"momentum": False, "feature_map": "cells", "feature_dim": 256}
# The rule and its options in each setting.
RULES = {
    "titans": ("titans", {}, {}),
    "titans_matrix": ("titans", {"depth": 1}, {"depth": 1}),
    "delta": ("delta", {}, CELLS),
    "ttt_mlp": ("ttt_mlp", {}, {}),
}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, rule="titans", change="none", recall=False, steps=0, seed=0)
  if arg.rule not in RULES:
    raise ValueError(f"config argument 'rule={arg.rule}' is unknown; {base.nearest(arg.rule, RULES)}")
  rule, for_recall, for_language = RULES[arg.rule]
  if arg.recall:
    config = far_recall.get_config(f"rule={rule}")
  else:
    config = memory_40m.get_config("cpu,pretrain")
    for name, value in SIZE.items():
      config.update_from_flattened_dict({name: value})
    config.optim.steps = config.checkpoint.every_steps = 120
  config.seed = arg.seed
  config.optim.steps = arg.steps or config.optim.steps
  change = arg.change
  if change == "own_queries":
    config.model.memory.shared_qk, change = False, "none"
  config.model.memory.rule = "experiments.is_it_linear_attention.changed"
  config.model.memory.options = {"rule": rule, "change": change,
                                 "options": for_recall if arg.recall else for_language}
  return config
