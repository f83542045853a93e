"""A recursive model starts from another run, or from a checkpoint of the original program, and then is it."""
import json
import pathlib
import re

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import modes, recipes, train
from atlas_jax.puzzles import files, initial_model
from atlas_jax.recipes import trm
from atlas_jax.state import Trained
from tests import program, puzzle_runs, runs, torch_files
from tests import trm_fixture as fixture
from tests.helpers import assert_close, assert_same_bits, quick_compilation
from tests.program import refused

NAME = "model_att_rope"
# The network of the fixture, as a config has it.
FIELDS = {
  "trm.mixer": "attention", "trm.positions": "rope", "trm.width": 32, "trm.heads": 2, "trm.depth": 2,
  "trm.expansion": 4.0, "trm.n_outer": 2, "trm.n_inner": 2, "trm.n_prefix": 4, "trm.row_width": 40,
  "trm.dtype": "float32", "supervision.n_supervision": 3, "data.batch_rows": 8, "eval.batch_rows": 8,
  "puzzle_eval.pictures": 0, "monitor.tensorboard": False, "monitor.report": False,
  "puzzles.name": "built", "optim.steps": 2, "data.threads": 0,
}  # fmt: skip
SETTINGS = """arch:
  H_cycles: 2
  L_cycles: 2
  num_heads: 2
  pos_encodings: rope
  rms_norm_eps: 1.0e-05
"""


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def write_puzzles(folder, n_ids=7):
  """Writes the puzzles of the fixture's evaluation as the original's folders have them, as both splits."""
  given = fixture.part(NAME, "batch1/")
  labels = np.where(given["labels"] == -100, 0, given["labels"])
  for split in ("train", "test"):
    (folder / split).mkdir(parents=True)
    count = len(labels)
    arrays = {"inputs": given["inputs"].astype(np.uint8), "labels": labels.astype(np.uint8),
              "puzzle_identifiers": given["puzzle_identifiers"].astype(np.int32),
              "puzzle_indices": np.arange(count + 1), "group_indices": np.arange(count + 1)}  # fmt: skip
    for name, array in arrays.items():
      np.save(folder / split / f"all__{name}.npy", array)
    facts = dict.fromkeys(files.ZEROS, 0) | {
      "vocab_size": 11, "seq_len": 16, "num_puzzle_identifiers": n_ids, "total_groups": count,
      "sets": ["all"]}  # fmt: skip
    (folder / split / "dataset.json").write_text(json.dumps(facts))
  return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with the fixture's checkpoint as PyTorch writes it, its settings, and its puzzles."""
  folder = tmp_path_factory.mktemp("trm_start")
  saved = {f"_orig_mod.model.inner.{name}": array for name, array in fixture.weights(NAME).items()}
  torch_files.write(folder / "step_7", saved)
  (folder / initial_model.SETTINGS).write_text(SETTINGS)
  write_puzzles(folder / "puzzles")
  write_puzzles(folder / "others", n_ids=9)
  return folder


def flags(place, workdir, mode="import", puzzles="puzzles", **changes):
  """The command line that imports, or trains from, the checkpoint."""
  fields = {**FIELDS, "puzzles.path": place / puzzles, "trm.path": place / "step_7",
            **{name.replace("__", "."): value for name, value in changes.items()}}  # fmt: skip
  chosen = [f"--config.{name}={value}" for name, value in fields.items()]
  return [f"--mode={mode}", "--config=configs/trm_sudoku.py:smoke,att", f"--workdir={workdir}", *chosen]


@pytest.fixture(scope="module")
def imported(place):
  """The workdir of the imported checkpoint, and what was said."""
  done = program.run(*flags(place, place / "imported"))
  assert done.code == 0, done.err
  assert json.loads(done.out) == {"workdir": str(place / "imported"), "step": 0}
  return place / "imported", done.err


def test_an_imported_checkpoint_is_evaluated_as_the_original_evaluates_it(imported):
  """All but the halting loss, in which the original counts the one row without labels."""
  workdir, said = imported
  done = program.run("--mode=eval", f"--workdir={workdir}")
  assert done.code == 0, done.err
  found, expected = json.loads(done.out), fixture.part(NAME, "eval/metric/")
  assert found["step"] == 0 and found["eval/all/count"] == expected["count"]
  for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss"):
    wanted = float(expected[name] / expected["count"])
    assert_close(found[f"eval/all/{name}"], wanted, why=name, tolerance=1e-5)
  assert "the 7 rows of the puzzle table are taken over" in said


def test_its_predictions_are_the_recorded_ones(imported):
  """Through the checkpoint of the workdir, as `--mode=solve` reads it."""
  from atlas_jax.language import runs as served
  from atlas_jax.puzzles import solver

  workdir, _ = imported
  config, mesh = modes.config_of_run(str(workdir), {}), runs.one_device()
  model = trm.model_of(config)
  params, tables, step = served.restore(config, workdir, trm.init_of(config, model, 7), mesh)
  given = fixture.part(NAME, "batch1/")
  batch = {"inputs_BT": given["inputs"], "labels_BT": given["labels"], "ids_B": given["puzzle_identifiers"]}
  trained = Trained(params, {"reset": initial_model.reset_of(config, model, workdir)}, tables)
  solve = solver.make(model, lambda: iter([batch]), mesh,
                      trm.solve_options_of(config)._replace(batch_rows=5))  # fmt: skip
  results = list(solve(trained))
  expected = fixture.part(NAME, "eval/")
  np.testing.assert_array_equal([result.prediction_T for result in results], expected["logits"].argmax(-1))
  assert_close(np.array([result.halt_logit for result in results], np.float32), expected["q_halt_logits"])


def test_training_goes_on_from_the_imported_weights_and_resumes(imported, place):
  """What the run computes stays the original's, also when it is gone on with."""
  done = program.run(*flags(place, place / "trained", "train", optim__lr=1e-9, optim__warmup_steps=1,
                            table__lr=0.0))  # fmt: skip
  assert done.code == 0, done.err
  again = program.run(*flags(place, place / "trained", "train", optim__lr=1e-9, optim__warmup_steps=1,
                             table__lr=0.0, optim__steps=4, trm__path=place / "step_7"))  # fmt: skip
  assert again.code == 0 and "resumed from step 2" in again.err
  scores = [json.loads(program.run("--mode=eval", f"--workdir={workdir}").out)
            for workdir in (imported[0], place / "trained")]  # fmt: skip
  assert_close(scores[1]["eval/all/lm_loss"], scores[0]["eval/all/lm_loss"], tolerance=1e-5)


def test_rows_of_other_puzzles_start_from_the_mean_and_it_is_said(place, caplog):
  done = program.run(*flags(place, place / "mean", puzzles="others"))
  assert done.code == 0 and "the 9 rows of the puzzle table start from the mean" in done.err
  config = modes.config_of_run(str(place / "mean"), {})
  state = runs.saved(config, recipes.load(config, runs.one_device()), place / "mean")
  table_NE = fixture.weights(NAME)["puzzle_emb.weights"]
  wanted_E = table_NE.sum(0) / np.any(table_NE != 0, axis=1).sum()
  assert_close(np.asarray(state.tables["puzzles"]), np.broadcast_to(wanted_E, (64, 40)).astype(np.float32))
  caplog.clear()
  recipes.load(config, runs.one_device()).assets.check(place / "mean")
  assert "start from the mean" in caplog.text and "an evaluation says nothing" in caplog.text


WRONG = [
  (dict(trm__path="None"), "--mode=import takes the weights of a recursive model"),
  (dict(trm__path="gone"), "config.trm.path='gone' is neither the workdir of a run nor a checkpoint"),
  (dict(trm__path="HERE"), "it holds step_7: give '"),
  (dict(trm__width=64), r"embed_tokens.embedding_weight is of shape \(11, 32\)"),
  (dict(trm__depth=1), "the model has no place for L_level.layers.1"),
  (dict(trm__row_width=32), r"has a puzzle table of shape \(7, 40\), and config.trm.row_width=32"),
  (dict(trm__heads=4), r"all_config.yaml has num_heads: 2, and config.trm.heads=4; set it as it is there"),
  (dict(trm__norm_eps=1e-6), "has rms_norm_eps: 1.0e-05, and config.trm.norm_eps=1e-06"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", WRONG)
def test_weights_that_do_not_fit_are_refused_before_anything_is_made(place, change, words, tmp_path):
  change = {name: place if value == "HERE" else value for name, value in change.items()}
  line = refused(program.run(*flags(place, tmp_path / "run", **change)))
  assert re.search(words, line), line


def test_other_numbers_of_cycles_are_said(place, imported, caplog):
  changed = modes.config_of_run(str(imported[0]), {}).as_configdict()
  changed.trm.n_inner = 3
  initial_model._check_settings(place / "step_7", changed)
  assert "L_cycles: 2, and config.trm.n_inner=3: the weights were trained for the former" in caplog.text


def test_settings_beside_a_checkpoint_are_read_whatever_names_are_in_them(place, imported, tmp_path):
  (tmp_path / initial_model.SETTINGS).write_bytes(b"run_name: caf\xe9\n" + SETTINGS.encode())
  changed = modes.config_of_run(str(imported[0]), {}).as_configdict()
  initial_model._check_settings(tmp_path / "step_7", changed)
  changed.trm.heads = 4
  with pytest.raises(ValueError, match="has num_heads: 2, and config.trm.heads=4"):
    initial_model._check_settings(tmp_path / "step_7", changed)


# --- from another run ---


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A run on built puzzles: (config, workdir)."""
  folder = puzzle_runs.write_built(tmp_path_factory.mktemp("from_run") / "built")
  config = puzzle_runs.built_config(folder, optim__steps=3, optim__ema_decay=0.5, table__lr=0.1, seed=3)
  run(config, folder / "first")
  return config, folder / "first"


def run(config, workdir):
  """Trains as the program does."""
  mesh = runs.one_device()
  recipe = recipes.load(config, mesh)
  workdir.mkdir(parents=True, exist_ok=True)
  configs.save(config, workdir)
  recipe.assets.save(workdir)
  return train.run(config, recipe._replace(evals={}), mesh, workdir)


def begun(config, workdir):
  """The state a run starts from, and what is frozen."""
  recipe = recipes.load(config, runs.one_device())
  workdir.mkdir(parents=True)
  recipe.assets.save(workdir)
  run_ = train.Run(config, recipe, runs.one_device(), workdir, train.Checkpoints(workdir))
  state = train._start(run_)
  run_.close()
  return puzzle_runs.host(state), puzzle_runs.host(run_.frozen)


def test_a_run_starts_from_the_average_the_rows_and_the_vectors_of_another(first, tmp_path):
  config, workdir = first
  folder = pathlib.Path(config.puzzles.path)
  again = puzzle_runs.built_config(folder, trm__path=str(workdir), seed=11, optim__ema_decay=0.9)
  state, frozen = begun(again, tmp_path / "second")
  mesh = runs.one_device()
  old = puzzle_runs.host(runs.saved(config, recipes.load(config, mesh), workdir))
  assert_same_bits(state.params, old.ema)
  assert_same_bits(state.ema, old.ema)
  assert_same_bits(state.tables, old.tables)
  assert np.any(old.tables["puzzles"]) and state.step == 0
  assert_same_bits(frozen["reset"], initial_model.drawn_reset(trm.model_of(config), config.seed))
  third = puzzle_runs.built_config(folder, trm__path=str(tmp_path / "second"), seed=12)
  configs.save(again, tmp_path / "second")
  assert_same_bits(initial_model.saved_reset(trm.model_of(third), tmp_path / "second"), frozen["reset"])


def test_frozen_weights_stay_while_the_rows_of_the_puzzles_learn(first, tmp_path):
  config, workdir = first
  again = puzzle_runs.built_config(pathlib.Path(config.puzzles.path), trm__path=str(workdir), table__lr=0.1,
                                   optim__freeze="*", optim__steps=2, optim__warmup_steps=1)  # fmt: skip
  run(again, tmp_path / "second")
  mesh = runs.one_device()
  old = puzzle_runs.host(runs.saved(config, recipes.load(config, mesh), workdir))
  state = puzzle_runs.host(runs.saved(again, recipes.load(again, mesh), tmp_path / "second"))
  assert_same_bits(state.params, old.ema)
  assert np.any(state.tables["puzzles"] != old.tables["puzzles"])


def test_new_puzzles_have_the_mean_of_the_trained_rows(first, tmp_path):
  config, workdir = first
  other = puzzle_runs.write_built(tmp_path / "other", seed=1)
  state, _ = begun(puzzle_runs.built_config(other, trm__path=str(workdir)), tmp_path / "second")
  old = puzzle_runs.host(runs.saved(config, recipes.load(config, runs.one_device()), workdir))
  rows_NE = old.tables["puzzles"]
  mean_E = rows_NE.sum(0) / np.any(rows_NE != 0, axis=1).sum()
  assert_close(state.tables["puzzles"], np.broadcast_to(mean_E, rows_NE.shape))


def test_a_run_of_other_fields_is_refused_by_name(first, tmp_path):
  config, workdir = first
  changed = puzzle_runs.built_config(pathlib.Path(config.puzzles.path), trm__path=str(workdir), trm__heads=4)
  with pytest.raises(ValueError, match="heads is 2 there and 4 here; set config.trm as it is there"):
    begun(changed, tmp_path / "second")


def test_missing_vectors_are_named(place, imported, tmp_path):
  config = modes.config_of_run(str(imported[0]), {})
  with pytest.raises(ValueError, match="reset.npz is missing or damaged .* bring it back, or start anew"):
    initial_model.reset_of(config, trm.model_of(config), tmp_path)
  found = initial_model.reset_of(config, trm.model_of(config), imported[0])
  assert_same_bits(found, tuple(fixture.weights(NAME)[name] for name in ("H_init", "L_init")))
