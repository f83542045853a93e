"""Every setting of a run, with its default, its unit and its meaning."""
import ml_collections
from ml_collections import config_dict

OPTIONAL = config_dict.placeholder


def default() -> ml_collections.ConfigDict:
  """Returns every field with a working value. Configs change what differs; unknown fields are refused."""
  config = ml_collections.ConfigDict()
  config.recipe = "memory_lm"  # Kind of training: a file in recipes/, or a dotted module name.
  config.seed = 0  # Draws parameters, order of data, and everything else random.
  config.data = _data()
  config.model = _model()
  config.trm = _trm()
  config.supervision = _supervision()
  config.puzzles = _puzzles()
  config.table = ml_collections.ConfigDict({
      "lr": 1e-2,  # Step of the signs of a puzzle row's gradient; follows optim's schedule.
      "weight_decay": 0.1,  # Share of a visited row taken off per update, times its step.
  })
  config.loss = ml_collections.ConfigDict({
      "block_tokens": OPTIONAL(int),  # Tokens whose logits exist at the same time; None: all of a batch.
  })
  config.optim = _optim()
  config.train = ml_collections.ConfigDict({
      "accumulate_steps": 1,  # Parts a batch is cut into, one after another, for one update.
      "log_every_steps": 10,  # Updates between rows of metrics.
      "eval_every_steps": OPTIONAL(int),  # Updates between evaluations; None: at the end only.
      "skip_limit": 10,  # Updates in a row with a loss or gradient that is not finite before the run stops.
  })
  config.checkpoint = _checkpoint()
  config.mesh = ml_collections.ConfigDict({
      "data": -1,  # Devices with other rows and the same parameters; -1: all that are left.
      "fsdp": 1,  # Devices with other rows and other parts of the parameters.
      "tensor": 1,  # Devices with the same rows and other heads and columns.
  })
  config.eval = _eval()
  config.puzzle_eval = _puzzle_eval()
  _add_tuning(config)
  config.monitor = ml_collections.ConfigDict({
      "progress": True,  # A progress bar, where there is a terminal.
      "tensorboard": True,  # TensorBoard events beside metrics.jsonl.
  })
  return config.lock()


def _checkpoint() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "every_steps": 1_000,  # Updates between checkpoints.
      "keep_last": 2,  # Newest checkpoints kept.
      "keep_best": 1,  # Checkpoints kept for the best value of best_metric.
      "best_metric": "val_bits_per_byte",  # Number of an evaluation, as summary.json names it.
      "best_mode": "min",  # "min" or "max", whichever of it is best.
      "keep_every_steps": OPTIONAL(int),  # Checkpoints at multiples of this are kept for ever.
  })


def _eval() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "batch_rows": 8,  # Held-out streams read side by side.
      "max_tokens": OPTIONAL(int),  # Held-out tokens read by an evaluation; None: all.
      "gain_max_tokens": 65_536,  # Held-out tokens on which memory gain is measured.
      "baselines": True,  # Whether the end of a run measures trigram and gzip on the same bytes.
      "sample_prompt": "def ",  # Prompt of the text sample at the end of a run.
      "sample_tokens": 200,  # Its length; 0: none.
      "max_problems": 256,  # Held-out problems answered or scored; None: all of files.
      "grader": "correct",  # Reward that says whether an answer is right, see config.rewards.
      "temperature": 0.0,  # Of answers to held-out problems; 0 takes the likeliest token.
      "shown": 4,  # Of these answers, shown at the end; 0: none.
  })


def _puzzle_eval() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "mode": "all",  # "all": n_supervision steps for each; "halting": a halted slot takes the next puzzle.
      "halt_threshold": 0.0,  # halting: halt logit above which a puzzle is done.
      "n_trajectories": 1,  # Runs of each puzzle with noise, of which the surest is taken.
      "noise_std": 0.0,  # Noise on the latents at every supervision step.
      "vote": "count",  # How augmentations vote: "count", or "noisy_or" of the halting probabilities.
      "max_examples": OPTIONAL(int),  # Held-out examples evaluated; None: all.
      "pictures": 6,  # Puzzles drawn per evaluation, half of them solved; 0: none.
  })


def _data() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "source": "text",  # A file in data/, or a dotted module name.
      "name": "python_stdlib",  # Corpus: python_stdlib, files, a TFDS name such as lm1b, or hf:NAME.
      "path": OPTIONAL(str),  # Files, folders or a pattern, comma-separated, for name "files".
      "text_field": "text",  # Field of JSON lines or records that holds the text.
      "limit_bytes": OPTIONAL(int),  # Bytes of a corpus that are read; None: all.
      "bad_input_frac": 0.01,  # Share of unreadable documents before it is an error.
      "tokenizer": "byte",  # "byte", a tokenizer.json or its folder, or "model": that of model.path.
      "segment_len": 2_048,  # Tokens per row and update.
      "batch_rows": 16,  # Rows per update, over all processes.
      "held_out_frac": 0.05,  # Share of documents never trained on.
      "align_tokens": OPTIONAL(int),  # Documents start at multiples of it; None: of the memory's chunk_size.
      "carry": True,  # Whether memory and attention pass from segment to segment of a document.
      "threads": 2,  # Threads that prepare batches.
      "cache_dir": OPTIONAL(str),  # Tokenised corpora; None: the user's cache folder.
      "download": False,  # Whether a corpus that is not here may be fetched.
      # Of prompts, chats and ranked responses, which sft, grpo, gkd and ranked read:
      "files": OPTIONAL(str),  # JSON lines, JSON or Parquet: paths, folders, globs, comma-separated.
      "fields": {},  # What these files call "prompt", "messages", "answer" and "solution".
      "options": {},  # Options of a task made here: arithmetic, countdown.
      "epochs": OPTIONAL(int),  # Passes over the data; with optim.steps=None they set the run's length.
      "max_problems": OPTIONAL(int),  # Problems used; a task without end needs it in sft. None: all.
      "group_size": 8,  # grpo: completions per prompt.
      "max_prompt_tokens": 512,  # Of a prompt; a longer one is an error, or its start is cut off.
      "overlong": "error",  # What is longer than fits: "error", "truncate" or "skip".
      "packed": True,  # sft: whether examples share rows.
      "turns": "all",  # sft: assistant turns learnt of a chat: "all", "last", or "split" into rows.
      "chat_template": OPTIONAL(str),  # Folder of a tokenizer, or "model": that of model.path; None: texts.
      "template_values": {},  # What the template may use besides messages.
  })


def _model() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "kind": "memory",  # "memory": the fields below; "decoder": those of config.decoder.
      "path": OPTIONAL(str),  # Start of tuning: a published model's folder, hf:NAME, or a run's workdir.
      "vocab_size": 257,  # Must be the tokenizer's; 257: bytes and the document mark.
      "width": 512,  # Width of the residual stream.
      "depth": 8,  # Blocks.
      "heads": 8,  # Attention heads.
      "ff_width": 1_408,  # Hidden width of the feed-forward layers.
      "window_tokens": 256,  # How far attention sees, the token itself included.
      "memory_mix": "gate",  # "gate": memory beside attention; "none": attention alone.
      "gate_floor": 0.0,  # Least share of memory's output that enters a block, in [0, 1).
      "dtype": "bfloat16",  # Of activations. Parameters, fast weights and losses are float32.
      "remat": "none",  # Recomputed in the backward pass: "none", "dots" or "block".
      "scan_unroll": 1,  # Blocks unrolled per step of the scan over depth.
      "memory": {
          "rule": "titans",  # A file in memory/rules/, or a dotted module name.
          "options": {"surprise_max": 1.0},  # The rule's own options.
          "heads": 8,  # Memory heads.
          "key_dim": 64,  # Width of keys per head.
          "value_dim": 64,  # Width of values per head.
          "chunk_size": 64,  # Tokens whose writes are computed from one base state.
          "conv_taps": 4,  # Width of the causal convolutions on queries, keys and values.
          "retention_init": 0.995,  # Share of the memory kept per token at the start.
          "momentum_init": 0.6,  # Share of the momentum kept per token at the start.
          "write_rate_init": 0.01,  # Inner step size at the start.
          "write_rate_max": 0.1,  # Its bound.
          "remat_chunks": OPTIONAL(int),  # Chunks recomputed together in the backward pass; None: none.
          "impl": "auto",  # Form: "auto", "reference", "chunked", or, where the rule has one, "pallas".
      },
  })


def _add_tuning(config: ml_collections.ConfigDict) -> None:
  """Adds what sft, grpo, gkd and ranked read besides."""
  config.decoder = _decoder()
  config.lora = ml_collections.ConfigDict({
      "rank": OPTIONAL(int),  # Of the adapters that are trained in place of the model; None: the model is.
      "alpha": 16.0,  # Their scale is alpha / rank,
      "scaling": "rank",  # or with "sqrt_rank" alpha / sqrt(rank).
      "targets": "q,k,v,out,gate,up,down",  # Projections that have one.
  })
  config.sft = ml_collections.ConfigDict({
      "loss": "nll",  # "nll", or "dft": each token's times its own probability.
  })
  config.sampler = _sampler()
  config.rewards = "correct"  # Names, also dotted ones, with weights: "correct=1,marked=0.1".
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


def _trm() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "variant": "trm",  # "trm", "single" (one latent), "hrm" (two networks) or "transformer" (no recursion).
      "mixer": "attention",  # How positions meet: "attention", or "mlp" (over positions, fixed length).
      "width": 512,  # Width of the states.
      "heads": 8,  # Attention heads.
      "depth": 2,  # Blocks of the network that is called again and again.
      "expansion": 4.0,  # Hidden width of the SwiGLU layers over their input's, times 2/3, up to 256s.
      "n_outer": 3,  # Cycles of a supervision step; the last alone has a gradient.
      "n_inner": 6,  # Updates of the latent in a cycle, before one of the answer.
      "n_prefix": 16,  # Positions before the tokens that hold the puzzle's row.
      "row_width": 512,  # Numbers in a row of the puzzle table; 0: no table.
      "positions": "rope",  # "rope", "learned" or "none".
      "norm_eps": 1e-5,  # Floor under the root of the norms.
      "rope_base": 10_000.0,  # The slowest pair turns by 1 / base per position, nearly.
      "dtype": "bfloat16",  # Of states and activations. Parameters, table, norms and losses are float32.
  })


def _supervision() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "n_supervision": 16,  # Supervision steps of a puzzle at most.
      "explore_prob": 0.1,  # Share of steps that must go on to a drawn least number of steps.
      "train_continue": False,  # Whether going on has a logit of its own, as HRM has; costs a second forward.
      "token_loss": "stablemax",  # "stablemax" or "softmax".
      "loss_dtype": "float32",  # Of the token loss; "float64" needs JAX_ENABLE_X64.
      "steps_per_update": 1,  # Supervision steps whose gradients make one update.
  })


def _puzzles() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "name": "sudoku",  # arc1, arc2, arc2_public, sudoku, maze, or built: a folder in the original's layout.
      "path": OPTIONAL(str),  # sudoku, maze: folder of train.csv and test.csv; built: its folders.
      "concept_path": OPTIONAL(str),  # arc: ConceptARC's folder, trained on besides.
      "side": 9,  # sudoku: 4, 6 or 9; maze: cells per side.
      "n_train": 1_000,  # sudoku, maze: boards trained on, before augmentation.
      "n_test": 1_000,  # sudoku, maze: boards held out.
      "n_augmentations": 1_000,  # Augmentations of each board or task besides itself.
      "min_rating": OPTIONAL(int),  # sudoku: least difficulty in backtracks; maze: least shortest path.
      "canvas": 30,  # arc: side of the square that grids lie on; tasks with larger grids are left out.
      "max_tasks": OPTIONAL(int),  # arc: only so many tasks of each part, for small studies; None: all.
      "seed": 42,  # Of augmentations and of what is generated.
      "shift": "frozen",  # arc: a grid's place on the canvas: "frozen", or "fresh" on every visit.
      "sampler": "counter",  # Order of visits: "counter", or "original" as the original draws it.
      "epochs": OPTIONAL(int),  # Visits of each group; with optim.steps=None they set the run's length.
      "epochs_per_iteration": 10_000,  # sampler original: epochs drawn together.
  })


def _optim() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "name": "adamw",  # "adamw" or "adam_atan2".
      "lr": 1e-3,  # Highest learning rate.
      "warmup_steps": 100,  # Updates until it is reached; the first one already moves.
      "steps": 1_000,  # Updates of the run; None: those of puzzles.epochs.
      "schedule": "cosine",  # "cosine" or "wsd" (warm-up, stable, decay).
      "decay_frac": 0.2,  # wsd: share of the run spent falling.
      "final_lr_frac": 0.1,  # Learning rate at the end, as a share of the highest.
      "beta1": 0.9,  # Adam's averaging of gradients.
      "beta2": 0.95,  # Adam's averaging of squares.
      "eps": 1e-8,  # Adam's floor under the root.
      "weight_decay": 0.1,  # Share taken off per update, times the learning rate.
      "decay_of": "matrices",  # What is decayed: "matrices" or "all".
      "clip_norm": 1.0,  # Bound of the global gradient norm; None: no bound.
      "ema_decay": OPTIONAL(float),  # Keep of an average of the parameters, used by evals; None: none.
  })


def published_trm(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Sets what the published runs of tiny recursive models share; `default` holds the network's sizes."""
  config.recipe = "trm"
  config.data.batch_rows = 768
  config.optim.update(name="adam_atan2", lr=1e-4, warmup_steps=2_000, steps=None, final_lr_frac=1.0,
                      weight_decay=0.1, decay_of="all", clip_norm=None, ema_decay=0.999)
  config.train.update(log_every_steps=50)
  config.checkpoint.update(every_steps=1_000, best_metric="all_exact_accuracy", best_mode="max")
  config.eval.update(batch_rows=768, sample_tokens=0)
  return config


def small_arc(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks a recursive model for ARC to one that two cores train in half an hour, on small grids."""
  config.trm.update(mixer="mlp", positions="none", width=128, heads=4, n_outer=2, n_inner=2, n_prefix=1,
                    row_width=128, dtype="float32")
  config.supervision.update(n_supervision=4)
  config.data.batch_rows = 32
  config.puzzles.update(max_tasks=40, canvas=10, n_augmentations=1, epochs=None)
  config.optim.update(lr=1e-3, warmup_steps=50, steps=2_000, ema_decay=0.99)
  config.train.update(log_every_steps=20, eval_every_steps=500)
  config.checkpoint.update(every_steps=250, best_metric="ARC_pass@2")
  config.eval.batch_rows = 64
  return config
