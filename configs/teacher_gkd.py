"""Distillation of a model that has a teacher's help into one that has not, from traces.  Results: none yet.

STUDENT and TEACHER are folders of pretrained Llama or Qwen models (or hf:NAME, or workdirs of runs),
traces.jsonl has sessions of agents, or it is the URL of a store:

  python -m atlas_jax.main --config=configs/teacher_gkd.py --workdir=runs/teacher_gkd \
    --config.model.path=STUDENT --config.distill.teacher=TEACHER --config.data.files=traces.jsonl

All completions are the student's own, sessions below a reward of 0.8 are left out, tokenizers may differ.
config.distill.baseline compares with the student before it learnt: success, and tokens of an answer. With
`files` the file has prompts or chats, as configs/gkd.py reads them:

  python -m atlas_jax.main --config=configs/teacher_gkd.py:files --workdir=runs/teacher_gkd_files \
    --config.model.path=STUDENT --config.distill.teacher=TEACHER --config.data.files=FILE.jsonl

Siblings that need no data, on sums; they learn from a run of configs/teacher_sft.py, as :cpu from
runs/teacher_sft_cpu and as :smoke from runs/teacher_sft_smoke, which are trained first:

  python -m atlas_jax.main --config=configs/teacher_gkd.py:cpu --workdir=runs/teacher_gkd_cpu
  python -m atlas_jax.main --config=configs/teacher_gkd.py:smoke --workdir=runs/teacher_gkd_smoke
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False, files=False)
  chosen = base.choose(arg, "", "cpu", "smoke", "files")
  config = base.default()
  config.recipe = "gkd"
  config.model.kind = "decoder"
  config.distill.update(beta=0.5, on_policy_frac=1.0, baseline=True)
  config.sampler.temperature = 0.9
  config.checkpoint.update(best_metric="val_accuracy", best_mode="max", every_steps=100)
  if chosen in ("cpu", "smoke"):
    _sums(config)
    return _smoke(config) if arg.smoke else config
  config.data.update(name=chosen or "traces", tokenizer="model", chat_template="model", batch_rows=32,
                     held_out_frac=0.1, max_prompt_tokens=8_192, overlong="skip")
  config.decoder.update(dtype="bfloat16", remat="block", attention_block_tokens=512)
  config.sampler.max_tokens = 512
  config.rollout.pad_tokens = 512  # As attention_block_tokens: no part of a block is attended.
  config.loss.block_tokens = 2_048
  config.optim.update(lr=5e-6, warmup_steps=25, steps=250, weight_decay=0.01, final_lr_frac=0.0)
  config.train.update(accumulate_steps=8, log_every_steps=1, eval_every_steps=100)
  if chosen != "files":
    config.traces.update(min_reward=0.8, target="none")
  return config


def _sums(config):
  config.data.options = {"operations": "+", "digits": 2}
  config.data.update(name="arithmetic", tokenizer="byte", batch_rows=32, held_out_frac=0.1,
                     max_prompt_tokens=8)
  config.decoder.update(width=48, depth=2, heads=4, kv_heads=2, head_dim=12, ff_width=96, scan_unroll=2)
  config.distill.update(teacher="runs/teacher_sft_cpu", on_policy_frac=0.5)
  config.sampler.max_tokens = 32
  config.rollout.pad_tokens = 32
  config.optim.update(lr=3e-3, warmup_steps=15, steps=300, weight_decay=0.0)
  config.train.update(log_every_steps=5, eval_every_steps=150)
  config.eval.update(batch_rows=64, max_problems=64)


def _smoke(config):
  config = base.shrink(config)
  config.data.update(name="arithmetic", held_out_frac=0.2, max_prompt_tokens=8)
  config.distill.teacher = "runs/teacher_sft_smoke"
  config.sampler.max_tokens = 32
  config.decoder.scan_unroll = 1
  config.eval.update(batch_rows=4, max_problems=8)
  return config
