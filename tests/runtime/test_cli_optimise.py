"""`atlas optimise`: a system message is made better under a budget, and its file goes to work."""
import json

import pytest

from atlas_jax.rollout import teaching
from atlas_jax.runtime import cli, prompt_metric
from atlas_jax.runtime.settings_groups import ConfigError
from tests.runtime.worlds.sums import words, write_tasks

# Adds where its system message says so; a teacher that says what helps; and who rewrites the messages.
PARTS = """
import json
def system(messages):
  return " ".join(one["content"] for one in messages if one["role"] == "system")
def answer(messages):
  left, right = messages[-1]["content"].rstrip("=").split("+")
  return str(int(left) + int(right)) if "add" in system(messages) else left
def teach(messages):
  return "c" if "carry" in system(messages) else "add"
def reflect(messages):
  shown = messages[1]["content"]
  text = "tell to carry" if "guidance" in shown else "add the numbers"
  return json.dumps({"diagnosis": "wrong sums", "text": text})
def fails(messages):
  raise RuntimeError("down")
"""


def fields(tmp_path, **more):
  (tmp_path / "parts.py").write_text(PARTS)
  own = {"agent.options.function": f"{tmp_path}/parts.py:answer", "routing.lane": "auto",
         "optimise.model.kind": "function", "optimise.model.function": f"{tmp_path}/parts.py:reflect",
         "optimise.folder": f"{tmp_path}/search", "optimise.out": f"{tmp_path}/out/best.json",
         "optimise.metric_calls": "40"}
  return {**own, **more}


def searched(tmp_path, capsys, *flags, **more):
  code = cli.main(words(tmp_path, "optimise", *flags, **fields(tmp_path, **more)))
  return code, capsys.readouterr()


def rewards(tmp_path, capsys, **more):
  cli.main(words(tmp_path, "run", f"--tasks={write_tasks(tmp_path, 8)}", "--json", "--run=after", **more))
  return [json.loads(line)["reward"] for line in capsys.readouterr().out.splitlines()]


def test_a_message_of_the_agent_is_made_better_and_its_file_goes_to_work(tmp_path, capsys):
  code, said = searched(tmp_path, capsys, f"--tasks={write_tasks(tmp_path, 8)}", "--json")
  found = json.loads(said.out)
  assert code == 0 and found["improved"] and (found["first"], found["best"]) == (0.0, 1.0)
  assert found["spent"] <= found["budget"] == 40 and found["tasks"] == 8 and found["pareto"] == 1
  templates = teaching.load(f"{tmp_path}/out/best.json")
  assert templates.baseline == (("system", "add the numbers"), ("user", "{question}"))
  given = {name: value for name, value in fields(tmp_path).items() if name.startswith(("agent", "routing"))}
  given["agent.templates"] = f"{tmp_path}/out/best.json"
  assert rewards(tmp_path, capsys, **given) == [1.0] * 8
  # The same search asks nothing again; the sessions that were graded are tasks as well.
  code, said = searched(tmp_path, capsys, f"--tasks={write_tasks(tmp_path, 8)}")
  assert code == 0 and f"{found['spent']} metric calls" in said.out and "best.json" in said.out
  code, said = searched(tmp_path, capsys, "--json", **{"optimise.folder": f"{tmp_path}/more",
                                                       "optimise.most_tasks": "6"})
  more = json.loads(said.out)
  assert code == 0 and more["improved"] and (more["tasks"], more["left_out"]) == (6, 2)


def test_a_message_of_the_teacher_is_made_better(tmp_path, capsys):
  world = {"agent.options.function": "atlas_jax.runtime.worlds.arithmetic:student", "routing.lane": "paired",
           "teacher.function": f"{tmp_path}/parts.py:teach"}
  code, said = searched(tmp_path, capsys, f"--tasks={write_tasks(tmp_path, 12)}", "--json",
                        **{**world, "optimise.role": "teacher", "optimise.metric_calls": "60"})
  found = json.loads(said.out)
  assert code == 0 and found["improved"] and found["best"] == 1.0, found
  assert rewards(tmp_path, capsys, **world, **{"teacher.templates": f"{tmp_path}/out/best.json"}) == [1.0] * 8


@pytest.mark.parametrize(("more", "code", "said"), [
  ({"optimise.model.kind": "none", "optimise.model.function": "None"}, 3, "optimise.model.kind='none'"),
  ({"optimise.metric_calls": "5"}, 3, "config.optimise.metric_calls=5 is less than"),
  ({"optimise.role": "teacher"}, 3, "config.routing.lane='auto'"),
  ({"optimise.role": "judge"}, 3, "config.optimise.role='judge' must be one of agent, teacher"),
  ({"optimise.templates": "chatt"}, 3, "config.optimise.templates='chatt' is no set"),
  ({"grader": "None"}, 3, "nothing scores answers"),
  ({"agent.options.function": "tests.runtime.worlds.sums:broken"}, 3, "no score of the first texts"),
  ({"optimise.model.url": "http://x/v1"}, 3, "config.optimise.model.url=http://x/v1"),
  ({"optimise.held_out_frac": "1"}, 3, "config.optimise.held_out_frac=1")])
def test_wrong_inputs_are_named(tmp_path, capsys, more, code, said):
  found, told = searched(tmp_path, capsys, f"--tasks={write_tasks(tmp_path, 4)}", **more)
  assert found == code and said in told.err, told.err


def test_without_sessions_and_with_another_search_in_the_folder_it_says_so(tmp_path, capsys):
  assert cli.main(words(tmp_path, "run", "--task=1+1=")) == 0  # Without a right answer nothing grades it.
  capsys.readouterr()
  code, said = searched(tmp_path, capsys)
  assert code == 3 and "no session of tenant 'default' that is approved or graded (1 are" in said.err
  tasks = f"--tasks={write_tasks(tmp_path, 4)}"
  assert searched(tmp_path, capsys, tasks)[0] == 0
  code, said = searched(tmp_path, capsys, tasks, **{"session.max_attempts": "1"})
  assert code == 3 and "has a search with other" in said.err
  # A model that gives nothing: the first message stays, and that is said.
  code, said = searched(tmp_path, capsys, tasks, **{
    "optimise.model.function": f"{tmp_path}/parts.py:fails", "optimise.folder": f"{tmp_path}/f",
    "optimise.most_reflections": "2"})
  assert code == 0 and "reported: the first text" in said.out and "2 no reply" in said.out


def test_messages_of_a_set_are_one_and_fields_are_checked():
  assert prompt_metric.prompt_of(teaching.CHAT, "agent") == ""
  assert prompt_metric.prompt_of(teaching.AGENT, "teacher").startswith("You check a student's work.")
  changed = prompt_metric.with_prompt(teaching.CHAT, "agent", "Be brief.")
  assert [one[0] for one in changed.guided] == ["system", "user", "user"]
  assert prompt_metric.with_prompt(changed, "agent", " ") == teaching.CHAT
  with pytest.raises(ValueError, match=r"baseline has \{guidance\}"):
    prompt_metric.with_prompt(teaching.CHAT, "agent", "Mind {guidance}")
  with pytest.raises(ConfigError, match="different system messages"):
    prompt_metric.prompt_of(changed._replace(guided=teaching.CHAT.guided), "agent")
