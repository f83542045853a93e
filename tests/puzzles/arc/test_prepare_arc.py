"""The script that prepares ARC writes the reference's files and says what is wrong in one line."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[3]
TOY = np.load(ROOT / "tests/fixtures/trm/arc_builder.npz")


def prepare(*flags):
  return subprocess.run([sys.executable, str(ROOT / "scripts" / "prepare_arc.py"), *flags], text=True,
                        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_script_writes_the_references_files(tmp_path):
  for name, tasks in json.loads(str(TOY["tasks_json"])).items():
    (tmp_path / f"toy_{name}_challenges.json").write_text(json.dumps(tasks))
    (tmp_path / f"toy_{name}_solutions.json").write_text(json.dumps(
        {key: [pair["output"] for pair in task["test"]] for key, task in tasks.items()}))
  done = prepare("--name=files", f"--path={tmp_path}", f"--out={tmp_path / 'out'}", "--augmentations=12")
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout)
  assert said["ids"] == 66 and said["test"]["examples"] == 39
  np.testing.assert_array_equal(np.load(tmp_path / "out/train/all__inputs.npy"), TOY["train/inputs"])
  assert (tmp_path / "out/identifiers.json").read_text() == str(TOY["identifiers_json"])


def test_a_mistake_is_said_in_one_line(tmp_path):
  done = prepare("--name=files", f"--path={tmp_path}")
  assert done.returncode == 1
  assert len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith(f"prepare_arc: {tmp_path} has neither")


def test_subsets_are_built_in_the_order_that_is_asked_for(tmp_path):
  task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}
  for name in ("training", "evaluation", "concept"):
    (tmp_path / f"toy_{name}_challenges.json").write_text(json.dumps({f"{name}0": task}))
  order = ["concept", "evaluation", "training"]
  done = prepare("--name=files", f"--path={tmp_path}", f"--out={tmp_path / 'out'}", "--augmentations=0",
                 *(f"--only={name}" for name in order))
  assert done.returncode == 0, done.stderr
  names = json.loads((tmp_path / "out/identifiers.json").read_text())
  assert names == ["<blank>", *(f"{name}0" for name in order)]
  assert json.loads(done.stdout)["subsets"] == order
