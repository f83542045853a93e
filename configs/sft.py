"""Supervised tuning of an open model on prompts or chats, and small siblings.  Results: docs/results.md.

FOLDER is that of a pretrained Llama or Qwen model (or hf:NAME, or the workdir of a run), FILE.jsonl has rows
with `messages`, or with a `prompt` and a `completion`, or those of Arc-ATLAS:

  python -m atlas_jax.main --config=configs/sft.py --workdir=runs/sft \
    --config.model.path=FOLDER --config.data.files=FILE.jsonl

Adapters in place of the whole model: --config.lora.rank=16. With `teacher` the settings are those of
Arc-ATLAS's first stage (an 8B model, texts of 16,384 tokens, unpacked). With `memory` FOLDER is the workdir
of a run of configs/memory_40m.py, and prompts are texts:

  python -m atlas_jax.main --config=configs/sft.py:teacher --workdir=runs/teacher
  python -m atlas_jax.main --config=configs/sft.py:memory --workdir=runs/memory_sft

Siblings that need neither model nor data: a decoder that is drawn here, or with `memory` a memory model, and
sums with carries, worked out column by column:

  python -m atlas_jax.main --config=configs/sft.py:cpu --workdir=runs/sft_cpu
  python -m atlas_jax.main --config=configs/sft.py:cpu,memory --workdir=runs/sft_memory_cpu
  python -m atlas_jax.main --config=configs/sft.py:smoke --workdir=runs/sft_smoke

cpu takes minutes on two cores, smoke seconds.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False, teacher=False, memory=False)
  base.choose(arg, "", "cpu", "teacher")
  base.choose(arg, "", "smoke", "teacher")
  base.choose(arg, "", "memory", "teacher")
  config = base.default()
  config.recipe = "sft"
  config.model.kind = "memory" if arg.memory else "decoder"
  config.checkpoint.update(best_metric="val_loss_nats", every_steps=200)
  if arg.cpu or arg.smoke:
    _arithmetic(config, memory=arg.memory)
  else:
    _open_model(config, memory=arg.memory)
  if arg.teacher:
    config.data.update(segment_len=16_384, packed=False, epochs=10, batch_rows=16)
    config.optim.update(weight_decay=1e-4, final_lr_frac=0.0)
    config.train.accumulate_steps = 16
  return _smoke(config) if arg.smoke else config


def _open_model(config, *, memory: bool):
  config.data.update(name="files", tokenizer="model", chat_template=None if memory else "model",
                     segment_len=2_048, batch_rows=8, epochs=1, held_out_frac=0.05)
  if not memory:
    config.decoder.update(dtype="bfloat16", remat="block", attention_block_tokens=512)
  config.loss.block_tokens = 2_048
  config.optim.update(lr=1e-5, warmup_steps=20, steps=None, weight_decay=0.0)
  config.train.update(log_every_steps=5, eval_every_steps=200)
  config.eval.update(sample_prompt="", sample_tokens=0)


def _arithmetic(config, *, memory: bool):
  config.data.options = {"operations": "+", "digits": 2}
  config.data.update(name="arithmetic", tokenizer="byte", segment_len=128, batch_rows=16, held_out_frac=0.1,
                     max_problems=4_000)
  if memory:
    config.model.update(width=96, depth=3, heads=4, ff_width=256, window_tokens=64, dtype="float32",
                        scan_unroll=3)
    config.model.memory.update(heads=4, key_dim=16, value_dim=16, chunk_size=16)
  else:
    config.decoder.update(width=96, depth=3, heads=4, kv_heads=2, head_dim=24, ff_width=256, scan_unroll=3)
  config.optim.update(lr=3e-3, warmup_steps=30, steps=400)
  config.train.update(eval_every_steps=200)
  config.sampler.max_tokens = 32
  config.eval.update(sample_prompt="47+85=", sample_tokens=32)


def _smoke(config):
  config = base.shrink(config)
  config.data.update(name="arithmetic", max_problems=24, held_out_frac=0.2, epochs=None)
  config.decoder.scan_unroll = 1
  config.eval.update(batch_rows=4)
  return config
