"""Settings of recursive models and of puzzles."""
import ml_collections
from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, at_least, finite, fraction, one_of, or_none, seed

OPTIONAL = config_dict.placeholder


def groups() -> dict:
  """Returns the groups that recursive models read."""
  return {
      "trm": _trm(),
      "supervision": _supervision(),
      "puzzles": _puzzles(),
      "table": {
          "lr": at_least(0, 1e-2),  # Step of the signs of a puzzle row's gradient; follows optim's schedule.
          "weight_decay": at_least(0, 0.1),  # Fraction of a visited row taken off per update, times its step.
      },
      "puzzle_eval": _puzzle_eval(),
  }


def _trm() -> dict:
  return {
      # "trm", "single" (one latent), "hrm" (two networks) or "transformer" (no recursion).
      "variant": one_of("trm", "trm single hrm transformer"),
      # How positions meet: "attention", or "mlp" (over positions, fixed length).
      "mixer": one_of("attention", "attention mlp"),
      "width": at_least(1, 512),  # Width of the states.
      "heads": at_least(1, 8),  # Attention heads.
      "depth": at_least(1, 2),  # Blocks of the network that is called again and again.
      # Hidden width of the SwiGLU layers over their input's, times 2/3, up to 256s.
      "expansion": above_zero(4.0),
      "n_outer": at_least(1, 3),  # Cycles of a supervision step; the last alone has a gradient.
      "n_inner": at_least(1, 6),  # Updates of the latent in a cycle, before one of the answer.
      "n_prefix": at_least(0, 16),  # Positions before the tokens that hold the puzzle's row.
      "row_width": at_least(0, 512),  # Numbers in a row of the puzzle table; 0: no table.
      "positions": one_of("rope", "rope learned none"),  # "rope", "learned" or "none".
      "norm_eps": above_zero(1e-5),  # Floor under the root of the norms.
      "rope_base": above_zero(10_000.0),  # The slowest pair turns by 1 / base per position, nearly.
      # Of states and activations. Parameters, table, norms and losses are float32.
      "dtype": one_of("bfloat16", "float32 bfloat16"),
      "path": OPTIONAL(str),  # Start: another run's workdir, or a checkpoint of the original, such as step_1.
  }


def _supervision() -> dict:
  return {
      "n_supervision": at_least(1, 16),  # Supervision steps of a puzzle at most.
      "explore_prob": fraction(0.1),  # Fraction of steps that must go on to a drawn least number of steps.
      "train_continue": False,  # Whether going on has a logit of its own, as HRM has; costs a second forward.
      "token_loss": one_of("stablemax", "stablemax softmax"),  # "stablemax" or "softmax".
      # Of the token loss; "float64" needs JAX_ENABLE_X64.
      "loss_dtype": one_of("float32", "float32 float64"),
      "steps_per_update": at_least(1, 1),  # Supervision steps whose gradients make one update.
  }


def _puzzles() -> dict:
  return {
      # "arc1", "arc2", "arc2_public", "files" (ARC tasks of your own), "sudoku", "maze", or "built": a folder
      # in the original's layout.
      "name": "sudoku",
      # sudoku, maze: folder of train.csv and test.csv, or one CSV; built: its folders, comma-separated; arc:
      # folder of tasks; files: folders and files of tasks, comma-separated.
      "path": OPTIONAL(str),
      "test_path": OPTIONAL(str),  # files: the tasks to be solved, whose outputs may be unknown.
      "concept_path": OPTIONAL(str),  # arc: ConceptARC's folder, trained on besides.
      "side": 9,  # sudoku: 4, 6 or 9; maze: cells per side.
      # sudoku, maze: boards trained on, before augmentation; None: all of a file.
      "n_train": or_none(at_least(1, 1_000)),
      "n_test": or_none(at_least(1, 1_000)),  # sudoku, maze: boards held out; None: all of test.csv.
      "one_solution": True,  # sudoku: whether boards of files with several solutions are found and left out.
      "n_augmentations": at_least(0, 1_000),  # Augmentations of each board or task besides itself.
      "min_rating": OPTIONAL(int),  # sudoku: least difficulty in backtracks; maze: least shortest path.
      "canvas": 30,  # arc: side of the square that grids lie on; tasks with larger grids are left out.
      # arc: only so many tasks of each part, for small studies; None: all.
      "max_tasks": at_least(1, OPTIONAL(int)),
      "seed": seed(42),  # Of augmentations and of what is generated.
      # arc: a grid's place on the canvas: "frozen", or "fresh" on every visit.
      "shift": one_of("frozen", "frozen fresh"),
      # Order of visits: "counter", or "original" as the original draws it.
      "sampler": one_of("counter", "counter original"),
      # Visits of each group; with optim.steps=None they set the run's length.
      "epochs": at_least(1, OPTIONAL(int)),
      "epochs_per_iteration": at_least(1, 10_000),  # sampler original: epochs drawn together.
  }


def _puzzle_eval() -> dict:
  return {
      # "all": n_supervision steps for each; "halting": a halted slot takes the next puzzle.
      "mode": one_of("all", "all halting"),
      "halt_threshold": finite(0.0),  # halting: halt logit above which a puzzle is done.
      "n_trajectories": at_least(1, 1),  # Runs of each puzzle with noise, of which the surest is taken.
      "noise_std": at_least(0, 0.0),  # Noise on the latents at every supervision step.
      # How augmentations vote: "count", or "noisy_or" of the halting probabilities.
      "vote": one_of("count", "count noisy_or"),
      "max_examples": at_least(1, OPTIONAL(int)),  # Held-out examples evaluated; None: all.
      "pictures": at_least(0, 6),  # Puzzles drawn per evaluation, half of them solved; 0: none.
  }


def published_trm(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Sets what the published runs of tiny recursive models share; `default` holds the network's sizes."""
  config.recipe = "trm"
  config.data.batch_rows = 768
  config.optim.update(name="adam_atan2", lr=1e-4, warmup_steps=2_000, steps=None, final_lr_frac=1.0,
                      weight_decay=0.1, decay_of="all", clip_norm=None, ema_decay=0.999)
  config.train.update(log_every_steps=50)
  config.checkpoint.update(every_steps=1_000, best_metric="all_exact_accuracy", best_mode="max")
  config.eval.batch_rows = 768
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
