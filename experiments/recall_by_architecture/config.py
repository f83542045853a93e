"""A model of two blocks that has to recall pairs and needles past its window.  Results: README of this folder.

  python -m atlas_jax.main --config=experiments/recall_by_architecture/config.py:mix=gate --workdir=runs/gate

`mix` is how memory is mixed with attention, a file of models/blocks. Attention sees 16 tokens in each of two
blocks, hence 30 back; what is asked for stands at least 64 before its question. Texts of at most 512 tokens are
trained on, and asked of up to 16 times the length of the longest needle text in training.
"""
from atlas_jax import config as base

LONGEST = 384  # Tokens of a needle text in training.
TASKS = {"tasks": "mqar,niah,text", "mqar_pairs": "4,8,16,32", "mqar_distances": "64,128,192",
         "niah_kinds": "single_2,multi_key", "niah_lengths": f"192,256,{LONGEST}",
         "niah_depths": "0,0.25,0.5,0.75,1", "task_gap_tokens": 64}
# What is kept small where only the machinery is tried.
SMOKE = {"mqar_pairs": "2", "mqar_distances": "64", "niah_kinds": "single_2", "niah_lengths": "192",
         "niah_depths": "0.5"}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, mix="gate", smoke=False)
  config = base.default()
  config.data.update(source="recall_tasks", segment_len=512, batch_rows=8, limit_bytes=4_000_000)
  config.data.options = {**TASKS, **(SMOKE if arg.smoke else {})}
  config.model.update(width=96, depth=2, heads=2, ff_width=256, window_tokens=16, dtype="float32",
                      scan_unroll=2, memory_mix=arg.mix)
  config.model.memory.update(heads=4, key_dim=32, value_dim=32, chunk_size=32)
  config.optim.update(lr=3e-3, warmup_steps=20, steps=2 if arg.smoke else 500, schedule="wsd", decay_frac=0.3,
                      weight_decay=0.0)
  config.train.update(log_every_steps=1 if arg.smoke else 20)
  config.checkpoint.update(every_steps=100_000)
  config.eval.update(batch_rows=8, max_tokens=8 * 512 * (1 if arg.smoke else 8), gain_max_tokens=8 * 512,
                     baselines=False, sample_tokens=0, tasks="mqar,niah", task_gap_tokens=64,
                     task_samples=2 if arg.smoke else 16, mqar_pairs="8,32", mqar_distances="64,192,1024",
                     niah_kinds=TASKS["niah_kinds"], niah_depths="0,0.5,1",
                     niah_lengths=f"{LONGEST},{4 * LONGEST},{16 * LONGEST}")
  if arg.smoke:
    config.eval.update(SMOKE)
  config.monitor.update(progress=False, tensorboard=False)
  if arg.mix == "none":
    config.eval.gain_max_tokens = base.default().eval.gain_max_tokens  # There is no memory to measure.
  return config
