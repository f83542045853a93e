"""Policy optimisation with judges as a reward, and the judges of scripts/judge.py.  Results: none recorded.

The judges are models behind an endpoint with OpenAI's routes, such as vLLM or --mode=serve of this program:

  python -m atlas_jax.main --config=configs/rim.py --workdir=runs/rim
  python scripts/judge.py --config=configs/rim.py --data=answers.jsonl --config.rim.endpoint.url=http://...

In place of models, a program that compares answers; it needs neither network nor key:

  python -m atlas_jax.main --config=configs/rim.py:scripted,smoke --workdir=runs/rim_smoke
  python scripts/judge.py --config=configs/rim.py:scripted --data=answers.jsonl

A key stands in a variable of the environment, whose name is config.rim.endpoint.key_variable.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, scripted=False, smoke=False)
  config = base.default()
  config.recipe = "grpo"
  config.model.kind = "decoder"
  config.data.update(name="arithmetic", tokenizer="byte", batch_rows=64, group_size=8, held_out_frac=0.1,
                     max_prompt_tokens=8)
  config.data.options = {"operations": "+", "digits": 2, "style": "direct"}
  config.sampler.max_tokens = 3
  config.rewards = "places=0.5,rim=1"
  config.optim.update(lr=1e-3, warmup_steps=20, steps=200, weight_decay=0.0)
  config.train.update(log_every_steps=10, eval_every_steps=100)
  config.decoder.update(width=64, depth=2, heads=4, kv_heads=4, head_dim=16, ff_width=128)
  config.eval.update(batch_rows=64, max_problems=16)
  # No guidance is given here, and no work is shown: only the answer can be judged.
  config.rim.active_judges.update(helpfulness=False, process=False, diagnostic=False)
  if arg.scripted:
    config.rim.backend = "scripted"
  else:
    config.rim.endpoint.url = "http://127.0.0.1:8000/v1"
    config.rim.models.small_model = "judge"
  if arg.smoke:
    config = base.shrink(config)
    config.data.update(name="arithmetic", held_out_frac=0.2, max_prompt_tokens=8)
    config.rewards = "letters=1,rim=1"  # In four updates nothing is right by chance.
    config.eval.max_problems = 8
  return config
