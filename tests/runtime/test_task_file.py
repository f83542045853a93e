"""Files of tasks."""
import pytest

from atlas_jax.runtime import task_file
from atlas_jax.runtime.settings import ConfigError


@pytest.mark.parametrize(("text", "words"), [
  ("", "has no task"), ('{"tsk": "a"}', ":1: 'tsk' is no field of a task; did you mean 'task'"),
  ('{"task": "a"}\n{"task": 3}', ":2: task is int"), ('{"task": ""}', "task is missing"),
  ('{"task": "a", "tags": [1]}', "tags must be texts"), ("{", ":1"),
])  # fmt: skip
def test_lines_that_are_no_tasks_are_named(tmp_path, text, words):
  file = tmp_path / "tasks.jsonl"
  file.write_text(text)
  with pytest.raises(ConfigError, match=words):
    task_file.read(str(file))


def test_names_follow_from_file_and_settings(tmp_path):
  file = tmp_path / "tasks.jsonl"
  file.write_text('{"task": "a", "ground_truth": 3, "tags": ["x"]}\n')
  name = task_file.name_of(str(file), "paired")
  assert name == task_file.name_of(str(file), "paired") != task_file.name_of(str(file), "auto")
  [row] = task_file.read(str(file))
  spec = task_file.spec_of(row, key="k", tenant="t", lane=None, metadata={"m": 1})
  assert (spec.task, spec.ground_truth, spec.tags, spec.tenant) == ("a", "3", ("x",), "t")
