"""Settings of what sft, grpo, gkd and ranked read besides."""
import ml_collections
from ml_collections import config_dict

OPTIONAL = config_dict.placeholder


def add(config: ml_collections.ConfigDict) -> None:
  """Adds what sft, grpo, gkd and ranked read besides."""
  config.decoder = _decoder()
  config.lora = ml_collections.ConfigDict({
      "rank": OPTIONAL(int),  # Of the adapters that are trained in place of the model; None: the model is.
      "alpha": 16.0,  # Their scale is alpha / rank,
      "scaling": "rank",  # or with "sqrt_rank" alpha / sqrt(rank).
      "targets": "q,k,v,out,gate,up,down",  # Projections that have one.
      "path": OPTIONAL(str),  # Start of adapters: PEFT's folder, or hf:NAME; rank and others are as there.
  })
  config.sft = ml_collections.ConfigDict({
      "loss": "nll",  # "nll", or "dft": each token's times its own probability.
  })
  config.sampler = _sampler()
  config.rewards = "correct"  # Names, FILE.py:FUNCTION or dotted, and weights: "correct=1,mine.py:short=0.1".
  config.advantage = ml_collections.ConfigDict({
      "kind": "normalized",  # "normalized", "batch", "centered", "leave_one_out" or "ranked".
      "deviation": "sample",  # Divided by n - 1, or with "population" by n.
      "epsilon": 1e-4,  # Added to the deviation.
      "separate": False,  # Whether each reward is normalised before they are added up (GDPO).
  })
  config.rollout = _rollout()
  config.policy = _policy()
  config.distill = ml_collections.ConfigDict({
      "teacher": OPTIONAL(str),  # A published model's folder, hf:NAME, or a run's workdir.
      "beta": 0.5,  # 0: KL(teacher || student), 1: KL(student || teacher), between: Jensen-Shannon.
      "temperature": 1.0,  # Of both distributions in the divergence; sampling has its own.
      "alpha": OPTIONAL(float),  # Share of soft targets, the rest nll; None: the divergence at beta alone.
      "on_policy_frac": 0.5,  # Share of batches whose completions the student writes anew.
      "rest": "recorded",  # What the others show: "recorded" solutions, or what the "teacher" writes.
      "alignment": "auto",  # "tokens": the same ids; "spans": texts cut alike; "auto": as the tokenizers are.
      "teacher_template": "own",  # With data.chat_template: its "own", the "student", or a folder.
  })
  config.ranked = ml_collections.ConfigDict({
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
      "max_responses": OPTIONAL(int),  # Per prompt, evenly from best to worst; None: all.
      "folder": "model",  # Folder of the workdir that gets the trained model at the end.
  })
  config.vllm = _vllm()


def _decoder() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "vocab_size": 257,  # At least the tokenizer's.
      "width": 128,  # Width of the residual stream.
      "depth": 4,  # Blocks.
      "heads": 4,  # Heads of queries.
      "kv_heads": 2,  # Heads of keys and values, each shared by heads / kv_heads of queries.
      "head_dim": 32,  # Width of a head.
      "ff_width": 352,  # Hidden width of the feed-forward layers.
      "rope_base": 10_000.0,  # The slowest pair turns by 1 / base per position, nearly.
      "learned_positions": OPTIONAL(int),  # Rows of a learned table of positions in place of rotation.
      "qk_norm": False,  # Whether queries and keys are normalised per head.
      "qkv_bias": False,  # Whether projections to queries, keys and values have biases.
      "tied": True,  # Whether the output weights are the embedding.
      "norm_eps": 1e-6,  # Added to mean squares.
      "dtype": "float32",  # Of activations; also of a model read from model.path. Parameters are float32.
      "remat": "none",  # Recomputed in the backward pass: "none", "dots" or "block".
      "scan_unroll": 1,  # Blocks unrolled per step of the scan over depth.
      "attention_block_tokens": OPTIONAL(int),  # Queries attended at a time; None: all.
  })


def _sampler() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "kind": "native",  # "native", or "vllm": a server beside the run.
      "max_tokens": 256,  # Of a completion, the one that stops it included.
      "temperature": 1.0,  # Of drawing, and of the log-probabilities that are trained.
      "top_k": OPTIONAL(int),  # Tokens that may be drawn; None: all.
      "top_p": OPTIONAL(float),  # Least share of the probability that may be drawn; None: all.
      "min_p": OPTIONAL(float),  # Least probability, as a share of the largest; None: any.
      "repetition_penalty": 1.0,  # Divides positive logits of tokens that stand there; 1: off.
      "stop_end": True,  # Whether the tokenizer's end-of-text token ends a completion.
      "stop_strings": OPTIONAL(str),  # Texts that end it, with | between them; None: none.
  })


def _vllm() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "url": OPTIONAL(str),  # Of a server, http://HOST:PORT; None: the run starts and stops one.
      "command": OPTIONAL(str),  # What starts a server, without its flags; None: this Python's vllm.
      "arguments": "",  # More flags for it, as on a command line.
      "port": OPTIONAL(int),  # Of a server that is started; None: any free one.
      "shared_folder": OPTIONAL(str),  # For weights, twice the model's size; None: in memory, or the workdir.
      "dtype": OPTIONAL(str),  # Of weights and activations in the server; None: decoder.dtype.
      "gap_limit_nats": OPTIONAL(float),  # Between its log-probabilities and ours; None: as the dtype allows.
      "start_timeout_s": 900.0,  # For a server to start.
      "timeout_s": 600.0,  # For any answer.
      "retries": 3,  # More tries after a failure that may pass.
      "backoff_s": 1.0,  # Before the first of them; doubles.
      "parallel_requests": 64,  # Prompts asked at the same time.
  })


def _rollout() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "batches": 1,  # Batches that are sampled at a time.
      "passes": 1,  # Updates made with each of them.
      "flat_groups": "keep",  # Groups of equal rewards: "keep", "skip", or "resample" other prompts.
      "max_resamples": 3,  # resample: times that other prompts are asked, at most.
      "truncated": "keep",  # Completions without an end: "keep", "mask" (but for rewards) or "drop".
      "overlong_tokens": OPTIONAL(int),  # The last so many tokens of max_tokens cost up to 1 of reward.
      "pad_tokens": 64,  # Lengths are rounded up to its multiples; more: fewer compilations.
      "max_staleness": 0,  # Updates that a completion's weights may be behind.
      "table_rows": 8,  # Completions of a rollout that are written down; 0: none.
  })


def _policy() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "preset": "dapo",  # grpo, bnpo, dr_grpo, dapo, gspo, gspo_token, cispo, sapo, luspo, vespo or gmpo.
      # Fields of losses.policy.Settings; None: as the preset has it.
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
      "top_entropy_frac": OPTIONAL(float),  # Trains on this share of tokens, those of highest entropy.
      "sampler_correction": OPTIONAL(str),  # token_truncate, token_mask, sequence_truncate, sequence_mask.
      "sampler_low": OPTIONAL(float),  # Its bounds; None: no bound.
      "sampler_high": 3.0,  # None: no bound.
      "stale_nats": OPTIONAL(float),  # Leaves out rows of negative advantage that drifted further than this.
      "reference_every_steps": OPTIONAL(int),  # Updates between moves of the reference; None: it stays.
      "reference_share": 0.9,  # Share of the policy in the reference after a move.
  })
