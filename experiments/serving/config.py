"""A small decoder that chats and calls tools, taught by rows of `prepare.py`.  Result: README beside it.

  python -m experiments.serving.prepare --out=runs/serving_rows
  python -m atlas_jax.main --config=experiments/serving/config.py --workdir=runs/serving_chat
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; `rows` is the folder that `prepare.py` wrote."""
  arg = base.parse_arg(arg, rows="runs/serving_rows")
  config = base.default()
  config.recipe = "sft"
  config.model.kind = "decoder"
  config.decoder.update(vocab_size=512, width=96, depth=2, heads=3, kv_heads=1, head_dim=32, ff_width=192,
                        scan_unroll=2, dtype="float32")
  config.data.update(name="files", files=f"{arg.rows}/rows.jsonl", tokenizer=f"{arg.rows}/tokenizer",
                     chat_template=f"{arg.rows}/tokenizer", segment_len=640, batch_rows=5, epochs=None,
                     held_out_frac=0.05)
  config.optim.update(lr=3e-3, warmup_steps=20, steps=400)
  config.train.update(log_every_steps=10, eval_every_steps=200)
  config.checkpoint.update(best_metric="val_loss_nats", every_steps=200)
  config.eval.update(sample_prompt="hello", sample_tokens=16)
  config.monitor.tensorboard = False
  return config
