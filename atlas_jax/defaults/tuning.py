"""Settings of what sft, grpo, gkd and ranked read besides."""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, at_least, fraction, one_of, one_of_or_module, or_none

OPTIONAL = config_dict.placeholder


def groups() -> dict:
  """Returns what sft, grpo, gkd and ranked read besides."""
  return {
      "decoder": _decoder(),
      "lora": {
          # Of the adapters that are trained in place of the model; None: the model is.
          "rank": at_least(1, OPTIONAL(int)),
          "alpha": above_zero(16.0),  # Their scale is alpha / rank,
          "scaling": one_of("rank", "rank sqrt_rank"),  # or with "sqrt_rank" alpha / sqrt(rank).
          "targets": "q,k,v,out,gate,up,down",  # Projections that have one.
          # Start of adapters: PEFT's folder, or hf:NAME; rank and others are as there.
          "path": OPTIONAL(str),
      },
      "sft": {
          "loss": one_of("nll", "nll dft"),  # "nll", or "dft": each token's times its own probability.
      },
      "sampler": _sampler(),
      "rewards": "correct",  # Names, FILE.py:FUNCTION or dotted, and weights: "correct=1,mine.py:short=0.1".
      "advantage": {
          "kind": "normalized",  # "normalized", "batch", "centered", "leave_one_out" or "ranked".
          "deviation": "sample",  # Divided by n - 1, or with "population" by n.
          "epsilon": 1e-4,  # Added to the deviation.
          "per_reward": False,  # Whether each reward is normalised before they are added up (GDPO).
      },
      "rollout": _rollout(),
      "policy": _policy(),
      "distill": {
          "teacher": OPTIONAL(str),  # A pretrained model's folder, hf:NAME, or a run's workdir.
          # 0: KL(teacher || student), 1: KL(student || teacher), between: Jensen-Shannon.
          "beta": fraction(0.5),
          "temperature": above_zero(1.0),  # Of both distributions in the divergence; sampling has its own.
          # Weight of soft targets, the rest nll; None: the divergence at beta alone.
          "alpha": fraction(OPTIONAL(float)),
          "on_policy_frac": fraction(0.5),  # Fraction of batches whose completions the student writes anew.
          # What the others show: "recorded" solutions, or what the "teacher" writes.
          "off_policy_source": one_of("recorded", "recorded teacher"),
          # Whether held-out answers are compared with those of the student before it learnt: success, length.
          "baseline": False,
          # "tokens": the same ids; "spans": texts cut alike; "auto": as the tokenizers are.
          "alignment": one_of("auto", "auto tokens spans"),
          "teacher_template": "own",  # With data.chat_template: its "own", the "student", or a folder.
      },
      "ranked": _ranked(),
      "vllm": _vllm(),
      "server": _server(),
  }


def _decoder() -> dict:
  return {
      "vocab_size": at_least(1, 257),  # At least the tokenizer's.
      "width": at_least(1, 128),  # Width of the residual stream.
      "depth": at_least(1, 4),  # Blocks.
      "heads": at_least(1, 4),  # Heads of queries.
      "kv_heads": at_least(1, 2),  # Heads of keys and values, each shared by heads / kv_heads of queries.
      "head_dim": at_least(1, 32),  # Width of a head.
      "ff_width": at_least(1, 352),  # Hidden width of the feed-forward layers.
      "rope_base": above_zero(10_000.0),  # The slowest pair turns by 1 / base per position, nearly.
      # Rows of a learned table of positions in place of rotation.
      "learned_positions": at_least(1, OPTIONAL(int)),
      "qk_norm": False,  # Whether queries and keys are normalised per head.
      "qkv_bias": False,  # Whether projections to queries, keys and values have biases.
      "tied": True,  # Whether the output weights are the embedding.
      "norm_eps": above_zero(1e-6),  # Added to mean squares.
      # Of activations; also of a model read from model.path. Parameters: train.param_dtype.
      "dtype": one_of("float32", "float32 bfloat16"),
      # Recomputed in the backward pass: "none", "dots" or "block".
      "remat": one_of("none", "none dots block"),
      "scan_unroll": at_least(1, 1),  # Blocks unrolled per step of the scan over depth.
      "attention_block_tokens": at_least(1, OPTIONAL(int)),  # Queries attended at a time; None: all.
  }


def _ranked() -> dict:
  return {
      "objective": "ranked",  # "ranked": preference and pairs; "group_relative": advantages and KL.
      "preference": "weighted_nll",  # "listnet" does not make the worst response likelier too.
      "reduction": "mean",  # Of a response's log-probabilities; "sum" favours short ones.
      "score_scale": 1.0,  # Multiplies scores before their softmax: more is sharper.
      "margin_scale": 1.0,  # Multiplies log-probabilities compared; for "sum" about 1 / length.
      "pair_weight": 0.5,  # Of the pairwise term.
      "pair_weighting": "equal",  # "gap": pairs weigh by how far apart their scores are.
      "min_preference": OPTIONAL(float),  # Preferences below it are dropped and the others scaled up.
      "anchored": False,  # Pairs compare log-probabilities minus the reference's.
      "kl_weight": 0.0,  # Of the KL to the reference, in "group_relative".
      "eval_files": OPTIONAL(str),  # Held-out prompts, as data.files; None: data.held_out_frac of them.
      "max_responses": at_least(1, OPTIONAL(int)),  # Per prompt, evenly from best to worst; None: all.
      "folder": "model",  # Folder of the workdir that gets the trained model at the end.
  }


def _sampler() -> dict:
  return {
      # "native", "vllm": a server beside the run, "server": one of --mode=serve, or a dotted module name, see
      # language/samplers.py.
      "kind": one_of_or_module("native", "native vllm server"),
      "max_tokens": at_least(1, 256),  # Of a completion, the one that stops it included.
      "temperature": 1.0,  # Of drawing, and of the log-probabilities that are trained.
      "top_k": OPTIONAL(int),  # Tokens that may be drawn; None: all.
      "top_p": OPTIONAL(float),  # Least probability in all that may be drawn; None: all.
      "min_p": OPTIONAL(float),  # Least probability, as a fraction of the largest; None: any.
      "repetition_penalty": 1.0,  # Divides positive logits of tokens that stand there; 1: off.
      "stop_end": True,  # Whether the tokenizer's end-of-text token ends a completion.
      "stop_strings": OPTIONAL(str),  # Texts that end it, with | between them; None: none.
  }


def _vllm() -> dict:
  return {
      "url": OPTIONAL(str),  # Of a server, http://HOST:PORT; None: the run starts and stops one.
      "command": OPTIONAL(str),  # What starts a server, without its flags; None: this Python's vllm.
      "arguments": "",  # More flags for it, as on a command line.
      "port": at_least(1, OPTIONAL(int)),  # Of a server that is started; None: any free one.
      "shared_folder": OPTIONAL(str),  # For weights, twice the model's size; None: in memory, or the workdir.
      "dtype": OPTIONAL(str),  # Of weights and activations in the server; None: decoder.dtype.
      # Between its log-probabilities and ours; None: as the dtype allows.
      "gap_limit_nats": above_zero(OPTIONAL(float)),
      "start_timeout_s": above_zero(900.0),  # For a server to start.
      "timeout_s": above_zero(600.0),  # For any answer.
      "retries": at_least(0, 3),  # More tries after a failure that may pass.
      "backoff_s": at_least(0, 1.0),  # Before the first of them; doubles.
      "parallel_requests": at_least(1, 64),  # Prompts asked at the same time.
  }


def _server() -> dict:
  return {
      "url": OPTIONAL(str),  # Of a server of --mode=serve, http://HOST:PORT.
      "weights_folder": OPTIONAL(str),  # Its config.serve.weights_folder, by the name it has here.
      "served_as": OPTIONAL(str),  # The model that is trained, by its name there; None: its first one.
      # Variable of the environment that has one of its trainers' tokens; None: ATLAS_JAX_SERVER_TOKEN.
      "token_variable": OPTIONAL(str),
      # Between its log-probabilities and ours; None: as the dtype allows.
      "gap_limit_nats": above_zero(OPTIONAL(float)),
      "timeout_s": above_zero(600.0),  # For any answer.
      "retries": at_least(0, 5),  # More tries after a failure that may pass.
      "backoff_s": at_least(0, 1.0),  # Before the first of them; doubles.
      "parallel_requests": at_least(1, 16),  # Prompts asked at the same time.
  }


def _rollout() -> dict:
  return {
      "batches_per_rollout": at_least(1, 1),  # Batches that are sampled at a time.
      "updates_per_batch": at_least(1, 1),  # Updates made with each of them.
      # Groups of equal rewards: "keep", "skip", or "resample" other prompts.
      "zero_std_groups": one_of("keep", "keep skip resample"),
      "max_resamples": at_least(0, 3),  # resample: times that other prompts are asked, at most.
      # Completions without an end: "keep", "mask" (but for rewards) or "drop".
      "truncated": one_of("keep", "keep mask drop"),
      # The last so many tokens of max_tokens cost up to 1 of reward.
      "overlong_tokens": at_least(1, OPTIONAL(int)),
      "pad_tokens": at_least(1, 64),  # Lengths are rounded up to its multiples; more: fewer compilations.
      "max_staleness": at_least(0, 0),  # Updates that a completion's weights may be behind.
      "table_rows": at_least(0, 8),  # Completions of a rollout that are written down; 0: none.
  }


def _policy() -> dict:
  return {
      "preset": "dapo",  # grpo, bnpo, dr_grpo, dapo, gspo, gspo_token, cispo, sapo, luspo, vespo or gmpo.
      # Fields of losses.policy.PolicySettings; None: as the preset has it.
      "objective": OPTIONAL(str),  # "clip", "cispo", "sapo", "vespo" or "gmpo".
      "ratio": OPTIONAL(str),  # "token", "sequence" or "sequence_token".
      "aggregation": OPTIONAL(str),  # "token_mean", "sequence_mean", "sequence_sum" or "constant".
      "clip_low": OPTIONAL(float),  # A ratio below 1 - clip_low is not lowered further.
      "clip_high": OPTIONAL(float),  # A ratio above 1 + clip_high is not raised further; cispo: the bound.
      "clip_max": OPTIONAL(float),  # Bounds the ratio also where the advantage is negative.
      "kl_weight": 0.0,  # Of the KL to the reference; 0 needs no reference.
      "kl_estimator": "k3",  # "k1", "k2" or "k3".
      "kl_ratio": False,  # Multiplies the KL by the ratio: right for completions of an older policy.
      "entropy_weight": 0.0,  # Of the entropy bonus.
      "top_entropy_frac": OPTIONAL(float),  # Trains on this fraction of tokens, those of highest entropy.
      "sampler_correction": OPTIONAL(str),  # token_truncate, token_mask, sequence_truncate, sequence_mask.
      "sampler_low": OPTIONAL(float),  # Its bounds; None: no bound.
      "sampler_high": or_none(3.0),  # None: no bound.
      "stale_nats": OPTIONAL(float),  # Leaves out rows of negative advantage that drifted further than this.
      # Updates between moves of the reference; None: it stays.
      "reference_every_steps": at_least(1, OPTIONAL(int)),
      "reference_share": fraction(0.9),  # Weight of the policy in the reference after a move.
  }
