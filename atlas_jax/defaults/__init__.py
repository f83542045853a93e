"""Every setting of a run, with its default, its unit and its meaning.

`alerts`, `episodes`, `handover`, `judging`, `puzzles`, `tuning`, `teaching`, `recall`, `serving` and `traces`
have theirs.
"""
import ml_collections
from ml_collections import config_dict

from atlas_jax.defaults import (
  alerts,
  bounds,
  episodes,
  handover,
  judging,
  puzzles,
  recall,
  serving,
  teaching,
  traces,
  tuning,
)
from atlas_jax.defaults.bounds import (
  above_zero,
  at_least,
  fraction,
  one_of,
  open_fraction,
  or_none,
  seed,
  several_of,
  span,
)

OPTIONAL = config_dict.placeholder


def default() -> ml_collections.ConfigDict:
  """Returns every field with a working value. Configs change what differs.

  Unknown fields are refused, and so are those that the recipe does not read; see `readers`.
  """
  return ml_collections.ConfigDict(bounds.plain(_fields())).lock()


def bounded() -> dict[str, bounds.Bounded]:
  """Returns the bounds and choices of fields by dotted name."""
  return bounds.collect(_fields())


def _fields() -> dict:
  return {
      "recipe": "memory_lm",  # Kind of training: a file in recipes/, or a dotted module name.
      "seed": seed(0),  # Draws parameters, order of data, and everything else random.
      "data": _data(),
      "model": _model(),
      "loss": {
          # Tokens whose logits exist at the same time; None: all of a batch.
          "block_tokens": at_least(1, OPTIONAL(int)),
          # Logits become probabilities by it; "stablemax" is for vocabularies up to about 1,000.
          "kind": one_of("softmax", "softmax stablemax"),
      },
      "window": {
          # How far attention sees while memory_lm and episodic train; all else sees model.window_tokens.
          # "full": model.window_tokens; "random": anew for each update; "delayed": short first.
          "kind": one_of("full", "full random delayed"),
          # random: the shortest, log-uniform from it on; delayed: the first.
          "least_tokens": at_least(1, OPTIONAL(int)),
          # delayed: updates with least_tokens, before those with all.
          "delay_steps": at_least(1, OPTIONAL(int)),
          # Mean fraction of an update's rows whose attention gives nothing, so that memory must.
          "drop_frac": fraction(0.0),
      },
      "episode": episodes.group(),
      "traces": traces.group(),
      "optim": _optim(),
      "train": _train(),
      "checkpoint": _checkpoint(),
      "mesh": _mesh(),
      "hosts": {  # Several processes; those of a run wait for each other:
          "join_s": above_zero(300.0),  # Seconds until all have started.
          "silent_s": above_zero(60.0),  # Seconds without a sign of life, then one counts as stopped.
          # Seconds where all meet: behind each compilation, reading data, at the end.
          "wait_s": above_zero(3_600.0),
      },
      "eval": _eval(),
      **puzzles.groups(),
      **tuning.groups(),
      **teaching.groups(),
      **serving.groups(),
      "rim": judging.group(),
      "monitor": _monitor(),
      "alerts": alerts.group(),
      "upload": handover.group(),
  }


def _mesh() -> dict:
  return {
      "data": -1,  # Devices with other rows and the same parameters; -1: all that are left.
      "fsdp": 1,  # Devices with other rows and other parts of the parameters.
      "tensor": 1,  # Devices with the same rows and other heads and columns.
      # Slices of devices with a slow network between them (DCN) and a fast one within (ICI, NVLink): data
      # runs over slices first, fsdp and tensor stay within one. On TPUs as many as there are.
      "dcn_data": at_least(1, 1),
  }


def _monitor() -> dict:
  return {
      "progress": True,  # A progress bar, where there is a terminal.
      "tensorboard": True,  # TensorBoard events beside metrics.jsonl.
      "report": True,  # report.png at the end, drawn from metrics.jsonl.
      # Trackers beside TensorBoard, with commas: "wandb", "trackio"; extra trackers. None: none.
      "trackers": several_of(OPTIONAL(str), "wandb trackio"),
      "group_norms": True,  # Norms of gradients, updates and parameters by group of parameters.
      # Seconds between measurements of processor, memory, disk and GPUs; None: none.
      "system_every_s": or_none(above_zero(10.0)),
      # Standard deviations of the loss above its running mean from which on high_loss.jsonl says where the
      # rows of a batch came from; None: never.
      "high_loss_deviations": or_none(above_zero(6.0)),
      # Updates that JAX's profiler traces for TensorBoard, such as "20:25", both included; None: none.
      "profile_steps": span(OPTIONAL(str)),
      "phases": {  # With eval.accuracy: phases of a run, from held-out rows; see monitor/phases.py.
          "window_evals": at_least(5, 8),  # Evaluations over which a change is judged.
          "confirm_evals": at_least(1, 3),  # Evaluations in a row before a phase is told.
          "high_accuracy": open_fraction(0.95),  # Held-out accuracy from which on a task is solved.
          "least_change": open_fraction(0.02),  # Of accuracy, and as a fraction of a loss: less is none.
      },
  }


def _data() -> dict:
  return {
      "source": "text",  # A source in data/ that the recipe can read, or a dotted module name.
      "name": "python_stdlib",  # Corpus: python_stdlib, files, a TFDS name such as lm1b, or hf:NAME.
      "path": OPTIONAL(str),  # Files, folders or a pattern, comma-separated, for name "files".
      "text_field": "text",  # Field of JSON lines or records that holds the text.
      "limit_bytes": at_least(1, OPTIONAL(int)),  # Bytes of a corpus that are read; None: all.
      "bad_input_frac": fraction(0.01),  # Fraction of unreadable documents before it is an error.
      "tokenizer": "byte",  # "byte", a tokenizer.json or its folder, or "model": that of model.path.
      "segment_len": at_least(1, 2_048),  # Tokens per row and update.
      "batch_rows": at_least(1, 16),  # Rows per update, over all processes.
      "held_out_frac": 0.05,  # Fraction of documents or prompts never trained on; 0: none, no evaluation.
      # Documents start at multiples of it; None: of the memory's chunk_size, or of the mix's segments.
      "align_tokens": at_least(1, OPTIONAL(int)),
      # Documents made into others, see data/transforms.py; None: as they are.
      "transform": one_of(OPTIONAL(str), "repeat shuffle_lines permute_bytes random_bytes"),
      "carry": True,  # Whether memory and attention pass from segment to segment of a document.
      "threads": at_least(0, 2),  # Threads that prepare batches.
      "cache_dir": OPTIONAL(str),  # Tokenised corpora; None: the user's cache folder.
      "download": False,  # Whether a corpus that is not here may be fetched.
      # Of prompts, chats and ranked responses, which sft, grpo, gkd and ranked read:
      "files": OPTIONAL(str),  # JSON lines, JSON, CSV or Parquet: paths, folders, globs, comma-separated.
      "fields": {},  # What these files call "prompt", "messages", "answer" and "solution".
      "options": {},  # Options of a task made here: arithmetic, convention, countdown.
      # Passes over the data; with optim.steps=None they set the run's length.
      "epochs": at_least(1, OPTIONAL(int)),
      # Problems used; a task without end needs it in sft. None: all.
      "max_problems": at_least(1, OPTIONAL(int)),
      "group_size": at_least(1, 8),  # grpo: completions per prompt.
      # Of a prompt; a longer one is an error, or its start is cut off.
      "max_prompt_tokens": at_least(1, 512),
      # What is longer than fits: "error", "truncate" or "skip".
      "overlong": one_of("error", "error truncate skip"),
      "packed": True,  # sft: whether examples share rows.
      # sft: assistant turns learnt of a chat: "all", "last", or "split" into rows.
      "turns": one_of("all", "all last split"),
      "chat_template": OPTIONAL(str),  # Folder of a tokenizer, or "model": that of model.path; None: texts.
      "template_values": {},  # What the template may use besides messages.
  }


def _model() -> dict:
  return {
      # "memory": the fields below; "decoder": those of config.decoder.
      "kind": one_of("memory", "memory decoder"),
      "path": OPTIONAL(str),  # A run's workdir; but for memory_lm also a pretrained folder, or hf:NAME.
      "vocab_size": at_least(1, 257),  # Must be the tokenizer's; 257: bytes and the document mark.
      "width": at_least(1, 512),  # Width of the residual stream.
      "depth": at_least(1, 8),  # Blocks.
      "heads": at_least(1, 8),  # Attention heads.
      "ff_width": at_least(1, 1_408),  # Hidden width of the feed-forward layers.
      # How far attention sees, the token itself included; with memory_mix="context" the segment it sees.
      "window_tokens": at_least(1, 256),
      # memory_mix="context": learned tokens that attention sees before each segment.
      "persistent_tokens": at_least(0, 4),
      # "gate": memory beside attention; "layer": before it; "context": attention sees what memory recalls;
      # "only": no attention; "e2e": feed-forward layers in its place; "none"; "conv": its convolutions alone.
      "memory_mix": "gate",
      "memory_layers": OPTIONAL(str),  # Blocks that have a memory, from 0, with commas; None: all.
      "gate_floor": 0.0,  # Least fraction of memory's output that enters a block, in [0, 1).
      # Of activations. Fast weights and losses are float32, parameters as train.param_dtype says.
      "dtype": one_of("bfloat16", "float32 bfloat16"),
      # Recomputed in the backward pass: "none", "dots" or "block".
      "remat": one_of("none", "none dots block"),
      "scan_unroll": at_least(1, 1),  # Blocks unrolled per step of the scan over depth.
      "memory": _memory(),
      "inner": {  # memory_mix="e2e": feed-forward layers that the model's own loss trains as it reads.
          "batch_tokens": at_least(2, 1_024),  # Tokens of one step.
          "ff_width": at_least(1, 704),  # Hidden width of these layers.
          "rate": above_zero(1.0),  # Step size.
          "clip_norm": or_none(above_zero(1.0)),  # Bound of a row's gradient norm; None: no bound.
      },
      "ngram_embed": {  # Embeddings of hashed n-grams beside those of tokens, as a control.
          # Longest n-gram, from 2 on; each length has a table. None: no n-grams.
          "max_n": at_least(2, OPTIONAL(int)),
          "table_rows": at_least(1, 4_096),  # Rows of each table.
      },
  }


def _memory() -> dict:
  return {
      "rule": "delta",  # A file in memory/rules/, or a dotted module name.
      # The rule's own options; another rule than the config's starts from none.
      "options": {"momentum": False, "feature_map": "cells", "feature_dim": 256, "cell_groups": 1},
      "heads": at_least(1, 8),  # Memory heads.
      "key_dim": at_least(1, 64),  # Width of keys per head.
      "value_dim": at_least(1, 64),  # Width of values per head.
      "chunk_size": at_least(1, 64),  # Tokens whose writes are computed from one base state.
      "conv_taps": at_least(2, 6),  # Width of the causal convolutions on queries, keys and values.
      # None: the rule's own, see `starts` in its file.
      # Fraction of the memory kept per token at the start.
      "retention_init": open_fraction(OPTIONAL(float)),
      # Fraction of the momentum kept per token at the start.
      "momentum_init": open_fraction(OPTIONAL(float)),
      "write_rate_init": above_zero(OPTIONAL(float)),  # Inner step size at the start.
      "write_rate_max": above_zero(OPTIONAL(float)),  # Its bound.
      # Longest half-life of a head over the shortest, at the start.
      "half_life_spread": at_least(1, 16.0),
      # Chunks recomputed together in the backward pass; None: none.
      "remat_chunks": at_least(1, OPTIONAL(int)),
      # Form: "auto", "reference", "chunked", or, where the rule has one, "pallas".
      "impl": one_of("auto", "auto reference chunked pallas"),
      "shift": True,  # Whether a value is written under the key of the token before it.
      "shared_qk": True,  # Whether queries are the keys' projection and convolution.
      "activation": one_of("none", "silu none"),  # After the convolutions: "silu" or "none".
      # Values: of the block's "input", convolved, or of the "token" alone.
      "value_source": one_of("token", "input token"),
      # "attention": its queries, keys and values enter the convolutions.
      "qkv_source": one_of("own", "own attention"),
      # Keys start as signatures of the last tokens; "identity": the token itself.
      "conv_init": one_of("ngram", "identity ngram"),
      # Fast weights of a new document: "learned", "zero"; "auto": zero if it can be.
      "initial": one_of("auto", "auto learned zero"),
      # Reads keep their length; "rms": unit mean square, whatever was recalled.
      "read_norm": one_of("none", "rms none"),
      "writes": True,  # False: nothing is written; every token reads the learned start. A control.
  }


def _optim() -> dict:
  return {
      "name": one_of("adamw", "adamw adam_atan2"),  # "adamw" or "adam_atan2".
      "lr": 1e-3,  # Highest learning rate.
      "warmup_steps": 100,  # Updates until it is reached; the first one already moves.
      "steps": or_none(at_least(1, 1_000)),  # Updates of the run; None: those of puzzles.epochs.
      "schedule": "cosine",  # "cosine" or "wsd" (warm-up, stable, decay).
      "decay_frac": 0.2,  # wsd: fraction of the run spent falling.
      "final_lr_frac": 0.1,  # Learning rate at the end, as a fraction of the highest.
      "beta1": 0.9,  # Adam's averaging of gradients.
      "beta2": 0.95,  # Adam's averaging of squares.
      "eps": 1e-8,  # Adam's floor under the root.
      "weight_decay": 0.1,  # Fraction taken off per update, times the learning rate.
      "decay_of": one_of("matrices", "matrices all"),  # What is decayed: "matrices" or "all".
      "clip_norm": or_none(1.0),  # Bound of the global gradient norm; None: no bound.
      # Fraction of a matrix's own direction that is taken out of its gradient; None: none.
      "orthogonal_grads": fraction(OPTIONAL(float)),
      "gate_lr_scale": above_zero(1.0),  # Factor on the learning rate of memory's gates.
      "ema_decay": OPTIONAL(float),  # Keep of an average of the parameters, used by evals; None: none.
      "freeze": OPTIONAL(str),  # Patterns of parameter names, comma-separated, not trained: "embed/*".
      # adamw: the mean is kept in it.
      "first_moment": one_of("float32", "float32 bfloat16"),
      # adamw: squares are kept in it, or "factored": a mean for each row and column of a matrix.
      "second_moment": one_of("float32", "float32 bfloat16 factored"),
  }


def _train() -> dict:
  return {
      "accumulate_steps": at_least(1, 1),  # Parts a batch is cut into, one after another, for one update.
      # Kernels in blocks are stored and trained in it, all else in float32; updates of bfloat16 are rounded
      # at random, right on average.
      "param_dtype": one_of("float32", "float32 bfloat16"),
      "log_every_steps": at_least(1, 10),  # Updates between rows of metrics.
      # Updates between evaluations; None: at the end only.
      "eval_every_steps": at_least(1, OPTIONAL(int)),
      # First update after which is evaluated; None: all that are due.
      "eval_from_step": at_least(1, OPTIONAL(int)),
      # Updates in a row with a loss or gradient that is not finite before the run stops.
      "skip_limit": at_least(1, 10),
      # Updates in a row that learn nothing before the run ends, saved; None: never.
      "idle_limit": or_none(at_least(1, 50)),
  }


def _checkpoint() -> dict:
  return {
      "every_steps": at_least(1, 1_000),  # Updates between checkpoints.
      "keep_last": at_least(1, 2),  # Newest checkpoints kept.
      "keep_best": at_least(0, 1),  # Checkpoints kept for the best value of best_metric.
      "best_metric": "val_bits_per_byte",  # Number of an evaluation, as summary.json names it.
      "best_mode": "min",  # "min" or "max", whichever of it is best.
      "keep_every_steps": at_least(1, OPTIONAL(int)),  # Checkpoints at multiples of this are kept for ever.
      "every_eval": False,  # Whether the checkpoints of all evaluations are kept for ever.
  }


def _eval() -> dict:
  return {
      "batch_rows": at_least(1, 8),  # Held-out streams read side by side.
      "max_tokens": at_least(1, OPTIONAL(int)),  # Held-out tokens read by an evaluation; None: all.
      # As data.transform, of held-out documents alone; None: the same.
      "transform": one_of(OPTIONAL(str), "repeat shuffle_lines permute_bytes random_bytes"),
      "gain_max_tokens": at_least(1, 65_536),  # Held-out tokens on which memory gain is measured.
      # Evaluations in a row at which a sign of a dead memory stands before it counts as collapse.
      "collapse_evals": at_least(1, 3),
      "baseline": OPTIONAL(str),  # Recorded figures without memory, a file of evals/baseline.py; None: none.
      "baselines": True,  # Whether the end of a run measures trigram and gzip on the same bytes.
      "accuracy": False,  # Whether the likeliest token's accuracy is measured, on trained and held-out rows.
      "sample_prompt": "def ",  # Prompt of the text sample at the end of a run.
      "sample_tokens": at_least(0, 200),  # Its length; 0: none.
      "max_problems": or_none(at_least(1, 256)),  # Held-out problems answered or scored; None: all of files.
      "grader": "correct",  # Reward that says whether an answer is right, see config.rewards.
      "temperature": at_least(0, 0.0),  # Of answers to held-out problems; 0 takes the likeliest token.
      "shown": at_least(0, 4),  # Of these answers, shown at the end; 0: none.
      **recall.fields(),
  }
