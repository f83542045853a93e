"""What `bench.py grpo` and `bench.py sampler` measure of other trainers, run by a Python that has them.

Each has a random Qwen2 decoder, a tokenizer of bytes, and the share of ASCII letters as its reward. Every
completion has the same length: ends are never drawn, or no id is an end.
"""
import os
import sys

import bench_child
import bench_turns

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

LETTERS = {*range(65, 91), *range(97, 123)}
PAD, BOS, EOS = 256, 257, 258
LR = 1e-3
CACHE_TOKENS = 128


def byte_tokenizer():
  """Makes a tokenizer whose first 256 ids are the bytes."""
  import tokenizers
  import transformers
  from tokenizers import decoders, models, pre_tokenizers

  alphabet = pre_tokenizers.ByteLevel.alphabet()
  own = {char: ord(char) for char in alphabet if ord(char) < 256}
  others = sorted(set(range(256)) - set(own.values()))  # Bytes without a sign of their own, in this order.
  ids = own | dict(zip(sorted(set(alphabet) - set(own), key=ord), others, strict=True))
  made = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left")


def prompts_of(spec: dict, count: int) -> list[str]:
  """Makes prompts of exactly prompt_tokens bytes."""
  size = spec["prompt_tokens"]
  return [f"{number:04d} say some letters, please: ->"[:size].ljust(size) for number in range(count)]


def share(ids, spec: dict) -> float:
  """Returns the reward of a completion."""
  return sum(int(one) in LETTERS for one in ids) / spec["new_tokens"]


# -------------------------------------------------------------------------------------------------------- TRL


def _qwen2(spec: dict):
  """Makes a random decoder of `transformers`."""
  import torch
  import transformers

  torch.set_num_threads(1)
  torch.manual_seed(0)
  shape = spec["shape"]
  config = transformers.Qwen2Config(
      vocab_size=shape["vocab_size"], hidden_size=shape["width"], intermediate_size=shape["ff_width"],
      num_hidden_layers=shape["depth"], num_attention_heads=shape["heads"],
      num_key_value_heads=shape["kv_heads"], max_position_embeddings=512, tie_word_embeddings=True,
      pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
  return transformers.AutoModelForCausalLM.from_config(config).float()


def _about_torch(model) -> dict:
  return {"params": sum(leaf.numel() for leaf in model.parameters()), "device": bench_child.processor(),
          "versions": bench_child.versions("trl", "torch", "transformers")}


def trl_grpo(spec: dict, turns: bench_turns.Turns) -> None:
  """Trains with GRPOTrainer, whose callbacks wait for their turn."""
  import tempfile

  import datasets
  import transformers
  import trl

  class Waits(transformers.TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
      turns.step()

  def letters(completion_ids, **kwargs):
    scores = [share(ids, spec) for ids in completion_ids]
    turns.part()
    return scores

  model = _qwen2(spec)
  turns.info = _about_torch(model)
  settings = trl.GRPOConfig(
      output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
      per_device_train_batch_size=spec["prompts"] * spec["group"], num_generations=spec["group"],
      max_completion_length=spec["new_tokens"], generation_kwargs={"min_new_tokens": spec["new_tokens"]},
      max_steps=10**6, learning_rate=LR, lr_scheduler_type="constant", logging_steps=1, save_strategy="no",
      loss_type="grpo", beta=0.0, temperature=1.0, disable_tqdm=True, seed=0)
  data = datasets.Dataset.from_dict({"prompt": prompts_of(spec, 64)})
  trl.GRPOTrainer(model=model, reward_funcs=letters, processing_class=byte_tokenizer(), callbacks=[Waits()],
                  args=settings, train_dataset=data).train()


def trl_sampler(spec: dict, turns: bench_turns.Turns) -> None:
  """Writes with `transformers`, which TRL generates with."""
  import torch

  model = _qwen2(spec).eval()
  turns.info = _about_torch(model)
  asked = [text for text in prompts_of(spec, spec["prompts"]) for _ in range(spec["group"])]
  ids = byte_tokenizer()(asked, return_tensors="pt", add_special_tokens=False)
  assert tuple(ids["input_ids"].shape) == (len(asked), spec["prompt_tokens"])
  while True:
    turns.step()
    with torch.no_grad():
      out = model.generate(
          input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], do_sample=True, temperature=1.0,
          top_k=0, top_p=1.0, min_new_tokens=spec["new_tokens"], max_new_tokens=spec["new_tokens"])
    assert out.shape[1] == spec["prompt_tokens"] + spec["new_tokens"]


# ------------------------------------------------------------------------------------------------------ Tunix


def _tunix_model(spec: dict, seed: int = 0):
  """Makes a random decoder of Tunix, drawn narrowly: its own scale is not meant for training from nothing."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx
  from tunix.models.qwen2 import model as qwen2

  shape = spec["shape"]
  model = qwen2.Qwen2(qwen2.ModelConfig(
      num_layers=shape["depth"], vocab_size=shape["vocab_size"], embed_dim=shape["width"],
      hidden_dim=shape["ff_width"], num_heads=shape["heads"], head_dim=shape["head_dim"],
      num_kv_heads=shape["kv_heads"], rope_theta=10_000, norm_eps=1e-6, use_tied_embedding=True),
      rngs=nnx.Rngs(seed))
  draw = np.random.default_rng(seed)
  leaf = lambda old: jnp.ones_like(old) if old.ndim == 1 else jnp.asarray(
      draw.normal(0, 0.02, old.shape), jnp.float32)
  nnx.update(model, jax.tree.map(leaf, nnx.state(model)))
  return model


def _about_tunix(model) -> dict:
  import jax
  from flax import nnx

  params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
  return {"params": params, "device": bench_child.processor(),
          "versions": bench_child.versions("google-tunix", "jax", "flax")}


def tunix_sampler(spec: dict, turns: bench_turns.Turns) -> None:
  """Writes with Tunix's own sampler."""
  from tunix.generate import sampler

  model = _tunix_model(spec)
  turns.info = _about_tunix(model)
  shape = spec["shape"]
  cache = sampler.CacheConfig(cache_size=CACHE_TOKENS, num_layers=shape["depth"],
                              num_kv_heads=shape["kv_heads"], head_dim=shape["head_dim"])
  writer = sampler.Sampler(model, byte_tokenizer(), cache)
  asked = [text for text in prompts_of(spec, spec["prompts"]) for _ in range(spec["group"])]
  seed = 0
  while True:
    turns.step()
    out = writer(asked, max_generation_steps=spec["new_tokens"], max_prompt_length=spec["prompt_tokens"],
                 temperature=1.0, top_p=1.0, eos_tokens=[shape["vocab_size"] + 7], seed=seed,
                 return_logprobs=True)
    assert sum(len(tokens) for tokens in out.tokens) == len(asked) * spec["new_tokens"]
    seed += 1


def tunix_grpo(spec: dict, turns: bench_turns.Turns) -> None:
  """Trains with GRPOLearner, whose batches wait for their turn."""
  import re

  import jax
  import numpy as np
  import optax
  from flax import nnx
  from tunix.rl import rl_cluster as clusters
  from tunix.rl.grpo import grpo_learner
  from tunix.rl.rollout import base_rollout

  model = _tunix_model(spec)
  turns.info = _about_tunix(model)
  special = re.compile("<[^<>]*>")  # It spells special ids out.
  asked = np.array(prompts_of(spec, spec["prompts"]))

  def batches():
    while True:
      jax.block_until_ready(nnx.state(model))
      turns.step()
      yield {"prompts": asked}

  def letters(prompts, completions, **kwargs):
    scores = [share(special.sub("", text).encode(), spec) for text in completions]
    turns.part()
    return scores

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
  role, rows = clusters.Role, spec["prompts"]
  training = clusters.RLTrainingConfig(
      actor_optimizer=optax.adamw(LR, weight_decay=0.0), eval_every_n_steps=10**6, max_steps=10**6,
      mini_batch_size=rows, train_micro_batch_size=rows)
  rollout = base_rollout.RolloutConfig(
      max_tokens_to_generate=spec["new_tokens"], max_prompt_length=spec["prompt_tokens"],
      kv_cache_size=CACHE_TOKENS, temperature=1.0, top_p=1.0, eos_tokens=[spec["shape"]["vocab_size"] + 7],
      return_logprobs=True)
  made = clusters.RLCluster(
      actor=model, reference=_tunix_model(spec), tokenizer=byte_tokenizer(),
      cluster_config=clusters.ClusterConfig(
          role_to_mesh=dict.fromkeys((role.ACTOR, role.REFERENCE, role.ROLLOUT), mesh),
          rollout_engine="vanilla", training_config=training, rollout_config=rollout))
  learner = grpo_learner.GRPOLearner(
      rl_cluster=made, reward_fns=letters,
      algo_config=grpo_learner.GRPOConfig(num_generations=spec["group"], num_iterations=1, beta=0.0))
  with mesh:
    learner.train(batches())


if __name__ == "__main__":
  every = {(system, side): globals()[f"{system}_{side}"] for system in ("trl", "tunix")
           for side in ("grpo", "sampler")}
  sys.exit(bench_turns.main(every))
