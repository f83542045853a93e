"""Policy optimisation of an open model on problems with checkable answers.  Results: docs/results.md.

FOLDER is that of a pretrained Llama or Qwen model (or hf:NAME, or the workdir of a run, such as one of
configs/sft.py), FILE.jsonl has rows with a `prompt` or `messages`, and an `answer`:

  python -m atlas_jax.main --config=configs/grpo.py --workdir=runs/grpo_open \
    --config.model.path=FOLDER --config.data.files=FILE.jsonl

The reward is 1 for a right answer; others, with weights: --config.rewards=correct=1,my_rewards.py:short=0.1
takes a function of (prompt, completion, answer), or one with TRL's signature, of a file or by dotted name.
--config.policy.preset chooses the loss (dapo, grpo, dr_grpo, gspo, cispo, ...), --config.advantage.kind how
completions are compared; --config.lora.rank=16 trains adapters; with --config.sampler.kind=vllm a vLLM server
writes the completions. With `texts` prompts are texts and not chats, as for models that were not tuned; with
`memory` FOLDER is the workdir of a run of configs/memory_40m.py; with `teacher` the settings are those of
Arc-ATLAS's reinforcement stage:

  python -m atlas_jax.main --config=configs/grpo.py:texts --workdir=runs/grpo_texts
  python -m atlas_jax.main --config=configs/grpo.py:memory --workdir=runs/grpo_memory
  python -m atlas_jax.main --config=configs/grpo.py:teacher --workdir=runs/grpo_teacher

Small siblings that need neither model nor data: configs/grpo_arithmetic.py.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, texts=False, memory=False, teacher=False)
  chosen = base.choose(arg, "", "texts", "memory", "teacher")
  config = base.default()
  config.recipe = "grpo"
  config.model.kind = "memory" if arg.memory else "decoder"
  config.data.update(name="files", tokenizer="model", batch_rows=128, group_size=8, max_prompt_tokens=1_024,
                     chat_template=None if arg.texts or arg.memory else "model", overlong="skip",
                     held_out_frac=0.05)
  if not arg.memory:
    config.decoder.update(dtype="bfloat16", remat="block", attention_block_tokens=512)
  config.sampler.max_tokens = 1_024
  config.rollout.update(pad_tokens=128, zero_std_groups="skip", truncated="mask")
  config.policy.update(sampler_correction="token_truncate", sampler_high=2.0)
  config.loss.block_tokens = 2_048
  config.optim.update(lr=1e-6, warmup_steps=10, steps=200, weight_decay=0.0, final_lr_frac=1.0)
  config.train.update(accumulate_steps=8, log_every_steps=1, eval_every_steps=25)
  config.checkpoint.update(every_steps=25, best_metric="val_accuracy", best_mode="max")
  config.eval.batch_rows = 32
  if chosen == "teacher":
    config.data.update(group_size=32, max_prompt_tokens=4_096, overlong="truncate")
    config.sampler.update(max_tokens=4_096, temperature=0.7)
    config.rollout.update(zero_std_groups="keep", truncated="keep")
    config.policy.update(preset="grpo", kl_weight=0.04, reference_every_steps=2, reference_share=0.9)
    config.optim.update(steps=250)
  return config
