"""Settings of recursive models and of puzzles."""
import ml_collections
from ml_collections import config_dict

OPTIONAL = config_dict.placeholder


def add(config: ml_collections.ConfigDict) -> None:
  """Adds the groups that recursive models read."""
  config.trm = _trm()
  config.supervision = _supervision()
  config.puzzles = _puzzles()
  config.table = ml_collections.ConfigDict({
      "lr": 1e-2,  # Step of the signs of a puzzle row's gradient; follows optim's schedule.
      "weight_decay": 0.1,  # Share of a visited row taken off per update, times its step.
  })
  config.puzzle_eval = _puzzle_eval()


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
      "path": OPTIONAL(str),  # Start: another run's workdir, or a checkpoint of the original, such as step_1.
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
      # "arc1", "arc2", "arc2_public", "files" (ARC tasks of your own), "sudoku", "maze", or "built": a folder
      # in the original's layout.
      "name": "sudoku",
      # sudoku, maze: folder of train.csv and test.csv, or one CSV; built: its folders, comma-separated; arc:
      # folder of tasks; files: folders and files of tasks, comma-separated.
      "path": OPTIONAL(str),
      "test_path": OPTIONAL(str),  # files: the tasks to be solved, whose outputs may be unknown.
      "concept_path": OPTIONAL(str),  # arc: ConceptARC's folder, trained on besides.
      "side": 9,  # sudoku: 4, 6 or 9; maze: cells per side.
      "n_train": 1_000,  # sudoku, maze: boards trained on, before augmentation; None: all of a file.
      "n_test": 1_000,  # sudoku, maze: boards held out; None: all of test.csv.
      "one_solution": True,  # sudoku: whether boards of files with several solutions are found and left out.
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
