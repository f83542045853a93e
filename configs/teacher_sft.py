"""The warm-up of a teacher: it learns guidance of recorded sessions or lessons.  Results: none yet.

FOLDER is that of a pretrained Llama or Qwen model (or hf:NAME), FILE.jsonl has lessons of Arc-ATLAS, with
problem_text, student_approach, teacher_diagnosis and teacher_teaching, or any rows that configs/sft.py reads:

  python -m atlas_jax.main --config=configs/teacher_sft.py --workdir=runs/teacher_sft \
    --config.model.path=FOLDER --config.data.files=FILE.jsonl

With `traces` the file has sessions of agents (or it is the URL of a store), and the teacher learns guidance
that did no harm, asked and replying by the protocol of rollout/teaching.py:

  python -m atlas_jax.main --config=configs/teacher_sft.py:traces --workdir=runs/teacher_sft_traces \
    --config.model.path=FOLDER --config.data.files=traces.jsonl

The settings are those of Arc-ATLAS's first stage. Siblings that need neither model nor data, on sums; cpu
takes minutes on two cores, smoke seconds:

  python -m atlas_jax.main --config=configs/teacher_sft.py:cpu --workdir=runs/teacher_sft_cpu
  python -m atlas_jax.main --config=configs/teacher_sft.py:smoke --workdir=runs/teacher_sft_smoke
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False, traces=False)
  chosen = base.choose(arg, "", "cpu", "smoke", "traces")
  config = base.default()
  config.recipe = "sft"
  config.model.kind = "decoder"
  config.checkpoint.update(best_metric="val_loss_nats", every_steps=200)
  if chosen in ("cpu", "smoke"):
    _sums(config)
    return _smoke(config) if arg.smoke else config
  config.data.update(name="files", tokenizer="model", chat_template="model", segment_len=16_384, packed=False,
                     batch_rows=16, epochs=10, held_out_frac=0.05, overlong="skip")
  config.decoder.update(dtype="bfloat16", remat="block", attention_block_tokens=512)
  config.loss.block_tokens = 2_048
  config.optim.update(lr=1e-5, warmup_steps=40, steps=None, weight_decay=1e-4, final_lr_frac=0.0)
  config.train.update(accumulate_steps=16, log_every_steps=1, eval_every_steps=200)
  config.eval.update(sample_prompt="", sample_tokens=0)
  if chosen == "traces":
    config.data.name = "traces"
    config.traces.update(target="teacher", lesson="atlas_jax.rollout.teaching")
  return config


def _sums(config):
  config.data.options = {"operations": "+", "digits": 2}
  config.data.update(name="arithmetic", tokenizer="byte", segment_len=64, batch_rows=16, packed=False,
                     held_out_frac=0.1, max_problems=2_000)
  config.decoder.update(width=64, depth=2, heads=4, kv_heads=2, head_dim=16, ff_width=128, scan_unroll=2)
  config.optim.update(lr=3e-3, warmup_steps=15, steps=300)
  config.train.update(eval_every_steps=150)
  config.sampler.max_tokens = 32
  config.eval.update(sample_prompt="47+85=", sample_tokens=32)


def _smoke(config):
  config = base.shrink(config)
  config.data.update(name="arithmetic", max_problems=24, held_out_frac=0.2)
  config.decoder.scan_unroll = 1
  config.eval.update(batch_rows=4, max_problems=8)
  return config
