"""Every setting of a run, with its default, its unit and its meaning; `puzzles` and `tuning` have theirs."""
import ml_collections
from ml_collections import config_dict

from atlas_jax.defaults import puzzles, tuning

OPTIONAL = config_dict.placeholder


def default() -> ml_collections.ConfigDict:
  """Returns every field with a working value. Configs change what differs.

  Unknown fields are refused, and so are those that the recipe does not read; see `readers`.
  """
  config = ml_collections.ConfigDict()
  config.recipe = "memory_lm"  # Kind of training: a file in recipes/, or a dotted module name.
  config.seed = 0  # Draws parameters, order of data, and everything else random.
  config.data = _data()
  config.model = _model()
  config.loss = ml_collections.ConfigDict({
      "block_tokens": OPTIONAL(int),  # Tokens whose logits exist at the same time; None: all of a batch.
  })
  config.window = ml_collections.ConfigDict({
      # How far attention sees while memory_lm trains; whatever else uses the model sees model.window_tokens.
      "kind": "full",  # "full": model.window_tokens; "random": anew for each update; "delayed": short first.
      "least_tokens": OPTIONAL(int),  # random: the shortest, log-uniform from it on; delayed: the first.
      "delay_steps": OPTIONAL(int),  # delayed: updates with least_tokens, before those with all.
  })
  config.optim = _optim()
  config.train = ml_collections.ConfigDict({
      "accumulate_steps": 1,  # Parts a batch is cut into, one after another, for one update.
      "log_every_steps": 10,  # Updates between rows of metrics.
      "eval_every_steps": OPTIONAL(int),  # Updates between evaluations; None: at the end only.
      "eval_from_step": OPTIONAL(int),  # First update after which is evaluated; None: all that are due.
      "skip_limit": 10,  # Updates in a row with a loss or gradient that is not finite before the run stops.
      "idle_limit": 50,  # Updates in a row that learn nothing before the run ends, saved; None: never.
  })
  config.checkpoint = _checkpoint()
  config.mesh = ml_collections.ConfigDict({
      "data": -1,  # Devices with other rows and the same parameters; -1: all that are left.
      "fsdp": 1,  # Devices with other rows and other parts of the parameters.
      "tensor": 1,  # Devices with the same rows and other heads and columns.
  })
  config.hosts = ml_collections.ConfigDict({  # Several processes; those of a run wait for each other:
      "join_s": 300.0,  # Seconds until all have started.
      "silent_s": 60.0,  # Seconds without a sign of life, then one counts as stopped.
      "wait_s": 3_600.0,  # Seconds where all meet: behind each compilation, reading data, at the end.
  })
  config.eval = _eval()
  puzzles.add(config)
  tuning.add(config)
  config.monitor = ml_collections.ConfigDict({
      "progress": True,  # A progress bar, where there is a terminal.
      "tensorboard": True,  # TensorBoard events beside metrics.jsonl.
  })
  return config.lock()


def _data() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "source": "text",  # A source in data/ that the recipe can read, or a dotted module name.
      "name": "python_stdlib",  # Corpus: python_stdlib, files, a TFDS name such as lm1b, or hf:NAME.
      "path": OPTIONAL(str),  # Files, folders or a pattern, comma-separated, for name "files".
      "text_field": "text",  # Field of JSON lines or records that holds the text.
      "limit_bytes": OPTIONAL(int),  # Bytes of a corpus that are read; None: all.
      "bad_input_frac": 0.01,  # Share of unreadable documents before it is an error.
      "tokenizer": "byte",  # "byte", a tokenizer.json or its folder, or "model": that of model.path.
      "segment_len": 2_048,  # Tokens per row and update.
      "batch_rows": 16,  # Rows per update, over all processes.
      "held_out_frac": 0.05,  # Fraction of documents or prompts never trained on; 0: none, no evaluation.
      "align_tokens": OPTIONAL(int),  # Documents start at multiples of it; None: of the memory's chunk_size.
      "transform": OPTIONAL(str),  # Documents made into others, see data/transforms.py; None: as they are.
      "carry": True,  # Whether memory and attention pass from segment to segment of a document.
      "threads": 2,  # Threads that prepare batches.
      "cache_dir": OPTIONAL(str),  # Tokenised corpora; None: the user's cache folder.
      "download": False,  # Whether a corpus that is not here may be fetched.
      # Of prompts, chats and ranked responses, which sft, grpo, gkd and ranked read:
      "files": OPTIONAL(str),  # JSON lines, JSON, CSV or Parquet: paths, folders, globs, comma-separated.
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
      "path": OPTIONAL(str),  # Start: a run's workdir; but for memory_lm also a published folder, or hf:NAME.
      "vocab_size": 257,  # Must be the tokenizer's; 257: bytes and the document mark.
      "width": 512,  # Width of the residual stream.
      "depth": 8,  # Blocks.
      "heads": 8,  # Attention heads.
      "ff_width": 1_408,  # Hidden width of the feed-forward layers.
      "window_tokens": 256,  # How far attention sees, the token itself included.
      "memory_mix": "gate",  # "gate": memory beside attention; "none"; "conv": its convolutions alone.
      "memory_layers": OPTIONAL(str),  # Blocks that have a memory, from 0, with commas; None: all.
      "gate_floor": 0.0,  # Least share of memory's output that enters a block, in [0, 1).
      "dtype": "bfloat16",  # Of activations. Parameters, fast weights and losses are float32.
      "remat": "none",  # Recomputed in the backward pass: "none", "dots" or "block".
      "scan_unroll": 1,  # Blocks unrolled per step of the scan over depth.
      "memory": {
          "rule": "delta",  # A file in memory/rules/, or a dotted module name.
          # The rule's own options; another rule than the config's starts from none.
          "options": {"momentum": False, "feature_map": "cells", "feature_dim": 256},
          "heads": 8,  # Memory heads.
          "key_dim": 64,  # Width of keys per head.
          "value_dim": 64,  # Width of values per head.
          "chunk_size": 64,  # Tokens whose writes are computed from one base state.
          "conv_taps": 6,  # Width of the causal convolutions on queries, keys and values.
          # None: the rule's own, see `starts` in its file.
          "retention_init": OPTIONAL(float),  # Share of the memory kept per token at the start.
          "momentum_init": OPTIONAL(float),  # Share of the momentum kept per token at the start.
          "write_rate_init": OPTIONAL(float),  # Inner step size at the start.
          "write_rate_max": OPTIONAL(float),  # Its bound.
          "half_life_spread": 16.0,  # Longest half-life of a head over the shortest, at the start.
          "remat_chunks": OPTIONAL(int),  # Chunks recomputed together in the backward pass; None: none.
          "impl": "auto",  # Form: "auto", "reference", "chunked", or, where the rule has one, "pallas".
          "shift": True,  # Whether a value is written under the key of the token before it.
          "shared_qk": True,  # Whether queries are the keys' projection and convolution.
          "activation": "none",  # After the convolutions: "silu" or "none".
          "value_source": "token",  # Values: of the block's "input", convolved, or of the "token" alone.
          "qkv_source": "own",  # "attention": its queries, keys and values enter the convolutions.
          "conv_init": "ngram",  # Keys start as signatures of the last tokens; "identity": the token itself.
          "initial": "auto",  # Fast weights of a new document: "learned", "zero"; "auto": zero if it can be.
          "read_norm": "none",  # Reads keep their length; "rms": unit mean square, whatever was recalled.
          "writes": True,  # False: nothing is written; every token reads the learned start. A control.
      },
      "ngram_embed": {  # Embeddings of hashed n-grams beside those of tokens, as a control.
          "max_n": OPTIONAL(int),  # Longest n-gram, from 2 on; each length has a table. None: no n-grams.
          "table_rows": 4_096,  # Rows of each table.
      },
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
      "gate_lr_scale": 1.0,  # Factor on the learning rate of memory's gates.
      "ema_decay": OPTIONAL(float),  # Keep of an average of the parameters, used by evals; None: none.
      "freeze": OPTIONAL(str),  # Patterns of parameter names, comma-separated, not trained: "embed/*".
  })


def _checkpoint() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "every_steps": 1_000,  # Updates between checkpoints.
      "keep_last": 2,  # Newest checkpoints kept.
      "keep_best": 1,  # Checkpoints kept for the best value of best_metric.
      "best_metric": "val_bits_per_byte",  # Number of an evaluation, as summary.json names it.
      "best_mode": "min",  # "min" or "max", whichever of it is best.
      "keep_every_steps": OPTIONAL(int),  # Checkpoints at multiples of this are kept for ever.
      "every_eval": False,  # Whether the checkpoints of all evaluations are kept for ever.
  })


def _eval() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "batch_rows": 8,  # Held-out streams read side by side.
      "max_tokens": OPTIONAL(int),  # Held-out tokens read by an evaluation; None: all.
      "transform": OPTIONAL(str),  # As data.transform, of held-out documents alone; None: the same.
      "gain_max_tokens": 65_536,  # Held-out tokens on which memory gain is measured.
      "baseline": OPTIONAL(str),  # Recorded figures without memory, a file of evals/baseline.py; None: none.
      "baselines": True,  # Whether the end of a run measures trigram and gzip on the same bytes.
      "sample_prompt": "def ",  # Prompt of the text sample at the end of a run.
      "sample_tokens": 200,  # Its length; 0: none.
      "max_problems": 256,  # Held-out problems answered or scored; None: all of files.
      "grader": "correct",  # Reward that says whether an answer is right, see config.rewards.
      "temperature": 0.0,  # Of answers to held-out problems; 0 takes the likeliest token.
      "shown": 4,  # Of these answers, shown at the end; 0: none.
  })
