"""Distillation of an open model into a smaller one, and a small sibling.

Results: experiments/gkd_arithmetic. STUDENT and TEACHER are folders of pretrained Llama or Qwen models (or
hf:NAME, or workdirs of runs), FILE.jsonl has rows with `messages`, or with a `prompt` and a `completion`:

  python -m atlas_jax.main --config=configs/gkd.py --workdir=runs/gkd \
    --config.model.path=STUDENT --config.distill.teacher=TEACHER --config.data.files=FILE.jsonl

Half of the batches have completions that the student writes, half the recorded ones; where there are none:
--config.distill.off_policy_source=teacher. With tokenizers that differ, texts are compared by spans. With
`texts` prompts are texts and not chats, as for models that were not tuned:

  python -m atlas_jax.main --config=configs/gkd.py:texts --workdir=runs/gkd_texts

A sibling that needs neither models nor data: a decoder that is drawn here learns sums from a run of
configs/sft.py, which is trained first, as :cpu into runs/sft_cpu, or as :smoke into runs/sft_smoke. Then:

  python -m atlas_jax.main --config=configs/gkd.py:cpu --workdir=runs/gkd_cpu
  python -m atlas_jax.main --config=configs/gkd.py:smoke --workdir=runs/gkd_smoke

The first takes minutes on two cores, smoke seconds. How few steps a student needs that starts from a part of
its teacher: experiments/gkd_arithmetic.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False, texts=False)
  base.choose(arg, "", "cpu", "texts")
  base.choose(arg, "", "smoke", "texts")
  config = base.default()
  config.recipe = "gkd"
  config.model.kind = "decoder"
  config.checkpoint.update(best_metric="val_divergence_nats", every_steps=100)
  if arg.cpu or arg.smoke:
    _arithmetic(config)
  else:
    _open_models(config, chats=not arg.texts)
  return _smoke(config) if arg.smoke else config


def _open_models(config, *, chats: bool):
  config.data.update(name="files", tokenizer="model", chat_template="model" if chats else None, batch_rows=32,
                     held_out_frac=0.05, max_prompt_tokens=1_024, overlong="skip")
  config.decoder.update(dtype="bfloat16", remat="block", attention_block_tokens=512)
  config.sampler.update(max_tokens=512, temperature=0.9)
  config.loss.block_tokens = 2_048
  config.optim.update(lr=5e-6, warmup_steps=25, steps=250, weight_decay=0.01)
  config.train.update(accumulate_steps=4, log_every_steps=1, eval_every_steps=50)


def _arithmetic(config):
  config.data.options = {"operations": "+", "digits": 2}
  config.data.update(name="arithmetic", tokenizer="byte", batch_rows=64, held_out_frac=0.1,
                     max_prompt_tokens=8)
  config.decoder.update(width=96, depth=3, heads=4, kv_heads=2, head_dim=24, ff_width=256, scan_unroll=3)
  config.distill.update(teacher="runs/sft_cpu", beta=0.0, on_policy_frac=0.25)
  config.sampler.max_tokens = 32
  config.rollout.pad_tokens = 32
  config.optim.update(lr=3e-3, warmup_steps=20, steps=400, weight_decay=0.0)
  config.train.update(log_every_steps=5, eval_every_steps=200)
  config.eval.update(batch_rows=64)


def _smoke(config):
  config = base.shrink(config)
  config.data.update(name="arithmetic", held_out_frac=0.2, max_prompt_tokens=8)
  config.distill.teacher = "runs/sft_smoke"
  config.sampler.max_tokens = 32
  config.decoder.update(scan_unroll=1)
  config.eval.update(batch_rows=4, max_problems=8)
  return config
