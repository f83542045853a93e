"""The benchmark measures what it is asked for, says what it cannot, and refuses what makes no sense."""

import json
import pathlib
import sys

import pytest

from atlas_jax.memory import rules

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench  # noqa: E402  Scripts are no package.
import bench_rl  # noqa: E402
import bench_runtime  # noqa: E402
import bench_serve  # noqa: E402
import bench_server  # noqa: E402
import bench_turns  # noqa: E402

# Of no virtual environment, and so without their packages.
SYSTEM_PYTHON = str(pathlib.Path(sys.base_prefix) / "bin" / "python3")

SHAPE = ["--batch=1", "--width=12", "--heads=2", "--chunk=8", "--lengths=16", "--repeats=2", "--json"]
KEYS = {
  *("name", "rule", "impl", "batch", "length", "width", "heads", "chunk", "what", "tokens_per_s"),
  *("tokens_per_cpu_s", "peak_memory_mib", "flops_fraction_of_peak", "peer_tokens_per_s"),
  *("peer_tokens_per_cpu_s", "peer_peak_memory_mib", "ratio", "versions", "device", "date"),
}
MEASURED = ("tokens_per_s", "tokens_per_cpu_s", "peak_memory_mib", "flops_fraction_of_peak")
MISTAKES = [
  ([], "arguments are required"),
  (["speed"], "invalid choice: 'speed'"),
  (["memory", "--lengths=20", "--chunk=8"], "20 is not a multiple of --chunk=8"),
  (["memory", "--width=10", "--heads=4"], "--width=10 is not a multiple of --heads=4"),
  (["memory", "--repeats=0"], "'0' must be a whole number, at least 1"),
  (["memory", "--what=backward"], "'backward' is unknown; known are forward, forward_backward"),
  (["memory", "--rule=nix"], "--rule=nix is unknown; rules are all, "),
  (["memory", "--options=[1]"], "must be a JSON object"),
  (["memory", "--options={depth}"], "--options"),
  (["memory", "--rule=all", '--options={"depth": 1}'], "--rule=all measures all"),
  (["memory", "--peer", "--rule=omega"], "--peer runs Titans memory"),
  (["memory", "--config.optim.lr=1"], "--config.optim.lr is for memory_lm, trm, decode and serve"),
  (["grpo", "--sizes=large"], "'large' is unknown; known are tiny, small"),
  (["grpo", "--core=4096"], "--core=4096 is none of those this process may use: "),
  (["sampler", "--peer", "--trl_python=nix"], "--trl_python=nix is no program; give the Python that has trl"),
  (["sampler", "--config.optim.lr=1"], "sampler has its own flags"),
  (["decode", "--lengths=0"], "'0' must be a whole number, at least 1"),
  (["decode", "--peer", "--peer_python=nix"], "--peer_python=nix is no program; give the Python that has"),
  (["serve", "--clients=8,0"], "'0' must be a whole number, at least 1"),
  (["serve", "--config=configs/nix.py"], "there is no file 'configs/nix.py'"),
  (["trm", "--variants=cnn"], "'cnn' is unknown; known are mlp, att"),
  (["memory", "--length=16"], "--length=16"),
  (["memory_lm"], "--config"),
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
  """Lets no library settle before a time is taken: nothing here judges a time."""
  monkeypatch.setattr(bench, "SETTLE_S", 0.0)


def run(capsys, *argv):
  """Returns exit status, rows of JSON, and what stood on standard error."""
  code = bench.main(list(argv))
  out, err = capsys.readouterr()
  return code, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize("argv, message", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(argv, message, capsys):
  code, rows, err = run(capsys, *argv)
  assert code == 2 and not rows
  assert len(err.splitlines()) == 1 and err.startswith("bench: ") and message in err


def test_without_the_peer_one_line_says_what_is_missing(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "titans_pytorch", None)
  code, rows, err = run(capsys, "memory", "--peer", *SHAPE)
  assert code == 2 and not rows and len(err.splitlines()) == 1
  assert "titans_pytorch is not installed" in err and "pip install titans-pytorch" in err


def test_both_passes_of_a_layer_give_a_row_each(capsys):
  code, rows, err = run(capsys, "memory", *SHAPE)
  assert code == 0, err
  assert [row["what"] for row in rows] == ["forward", "forward_backward"]
  for row in rows:
    assert set(row) >= KEYS and row["name"] == "memory" and row["rule"] == "titans"
    assert (row["batch"], row["length"], row["width"], row["heads"], row["chunk"]) == (1, 16, 12, 2, 8)
    assert all(row[name] > 0 for name in MEASURED)
    assert row["ratio"] is None and "jax" in row["versions"]


def test_an_option_a_rule_does_not_know_is_refused(capsys):
  code, rows, err = run(capsys, "memory", "--what=forward", '--options={"dept": 1}', *SHAPE)
  assert code == 2 and not rows and "does not know dept" in err


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_all_rules_give_a_row_each(capsys):
  code, rows, _ = run(capsys, "memory", "--rule=all", "--what=forward", *SHAPE, "--repeats=1")
  assert not [(row["rule"], row["error"]) for row in rows if "error" in row] and code == 0
  assert [row["rule"] for row in rows] == rules.names()
  assert all(set(row) >= KEYS and row["tokens_per_s"] > 0 for row in rows)


def test_a_rule_that_cannot_run_says_why_and_the_others_go_on(capsys, monkeypatch):
  # Listed here and unknown to the process that measures it, "gone" stands for a rule that refuses the shapes.
  monkeypatch.setattr(rules, "names", lambda: ["gone", "linear_attention"])
  code, rows, _ = run(capsys, "memory", "--rule=all", "--what=forward", *SHAPE, "--repeats=1")
  assert code == 1
  assert [row["rule"] for row in rows] == ["gone", "linear_attention"]
  assert "'gone' is unknown" in rows[0]["error"] and "error" not in rows[1]
  assert all(set(row) >= KEYS for row in rows)
  assert rows[0]["tokens_per_s"] is None and rows[1]["tokens_per_s"] > 0


@pytest.mark.slow
def test_a_training_step_gives_a_row_from_its_config(capsys):
  argv = ["memory_lm", SMOKE, "--config.data.batch_rows=8",
          "--config.model.depth=1", "--config.model.memory_layers=0", "--repeats=1"]  # fmt: skip
  code, rows, err = run(capsys, *argv, "--json")
  assert code == 0, err
  (row,) = rows
  assert set(row) >= KEYS and row["what"] == "train_step" and row["batch"] == 8 and row["length"] == 64
  assert all(row[name] > 0 for name in MEASURED)


def test_a_config_that_is_not_there_is_refused(capsys):
  code, rows, err = run(capsys, "memory_lm", "--config=configs/nix.py", "--json")
  assert code == 2 and not rows and "there is no file 'configs/nix.py'" in err


SMOKE = "--config=configs/memory_40m.py:smoke,pretrain"
TRM = ["--batch=8", "--config.trm.width=16", "--config.trm.heads=2", "--config.trm.n_prefix=1",
       "--config.trm.row_width=16", "--config.trm.expansion=0.5", "--config.puzzles.side=4",
       "--config.train.accumulate_steps=1", "--config.trm.n_inner=1", "--repeats=1", "--json"]  # fmt: skip
TRM_KEYS = {"cpu_s_per_step", "steps_per_s", "peak_memory_mib", "flops_fraction_of_peak", "compile_s"}


def test_a_recursive_model_gives_a_row_for_training_and_one_for_evaluation(capsys):
  code, rows, err = run(capsys, "trm", "--variants=mlp", *TRM)
  assert code == 0, err
  assert [(row["name"], row["variant"], row["what"], row["batch"]) for row in rows] == [
    ("trm", "mlp", what, 8) for what in ("train", "eval_step")]  # fmt: skip
  assert all(row[name] > 0 for row in rows for name in TRM_KEYS - {"compile_s"})
  assert all(row["compile_s"] >= 0 and row["dtype"] == "float32" for row in rows)


def test_a_config_of_another_kind_is_refused_by_trm(capsys):
  code, rows, err = run(capsys, "trm", "--config=configs/memory_40m.py", "--variants=mlp", *TRM)
  assert code == 2 and not rows and len(err.splitlines()) == 1


def test_the_table_keeps_its_columns(capsys):
  columns = bench.TABLE + bench.PEER_TABLE
  row = {**dict.fromkeys([name for name, _ in columns]), "rule": "titans", "peer_error": "passed the limit"}
  line = bench.show(row, columns)
  assert line.startswith("titans".rjust(bench.TABLE[0][1])) and line.endswith("peer_error: passed the limit")
  assert "None" not in line


RL_KEYS = {"cpu_s_per_step", "wall_s_per_step", "tokens_per_cpu_s", "tokens_per_s", "peak_memory_mib",
           "first_step_s", "warm_first_step_s"}  # fmt: skip


def test_completions_give_a_row_and_peers_that_are_missing_say_so(capsys, monkeypatch):
  # A Python without packages stands for one without the peers.
  monkeypatch.setattr(bench_rl, "SHAPE", {**bench_rl.SHAPE, "prompts": 2, "new_tokens": 2})
  code, rows, err = run(capsys, "sampler", "--sizes=tiny", "--repeats=1", "--json", "--peer",
                        f"--trl_python={SYSTEM_PYTHON}", f"--tunix_python={SYSTEM_PYTHON}")
  assert code == 1, err
  assert [(row["name"], row["system"], row["size"]) for row in rows] == [
    ("sampler", system, "tiny") for system in ("atlas_jax", "trl", "tunix")]  # fmt: skip
  ours, *peers = rows
  assert all(ours[name] > 0 for name in RL_KEYS) and ours["params"] == 870_528
  assert all("No module named" in row["error"] and row["cpu_s_per_step"] is None for row in peers)


@pytest.mark.slow
def test_a_step_of_policy_training_gives_a_row(capsys, monkeypatch):
  monkeypatch.setattr(bench_rl, "SHAPE", {**bench_rl.SHAPE, "prompts": 2, "new_tokens": 2})
  code, rows, err = run(capsys, "grpo", "--sizes=tiny", "--repeats=1", "--json")
  assert code == 0, err
  (row,) = rows
  assert all(row[name] > 0 for name in RL_KEYS | {"generate_cpu_s"})
  assert row["generate_cpu_s"] < row["cpu_s_per_step"] and row["ratio"] == 1


def test_a_loop_goes_on_only_when_told(monkeypatch):
  said, words = [], ["go"] * 3
  monkeypatch.setattr(bench_turns.bench_child, "forget_peak", lambda: said.append("forgotten"))
  turns = bench_turns.Turns(said.append, words)
  turns.info = {"params": 1}
  turns.step()
  turns.part()
  assert said == [{"params": 1}]
  turns.step()
  assert set(said[1]) == {"wall_s", "cpu_s", "generate_wall_s", "generate_cpu_s", "peak_memory_mib"}
  assert said[1]["generate_wall_s"] <= said[1]["wall_s"]
  turns.step()
  assert set(said[2]) == {"wall_s", "cpu_s", "peak_memory_mib"} and said[3] == "forgotten"


def test_decoding_is_measured_behind_any_context_with_the_same_state(capsys):
  """A peer that its Python has not is named, and the row of ours is there."""
  code, rows, _ = run(capsys, "decode", SMOKE, "--lengths=8,40", "--piece=8",
                      "--new_tokens=2", "--repeats=1", "--rows=2", "--peer", f"--peer_python={SYSTEM_PYTHON}",
                      "--json")
  ours, peers = rows[::2], rows[1::2]
  assert [row["context"] for row in ours] == [8, 40] and all(row["tokens_per_s"] > 0 for row in ours)
  assert ours[0]["state_bytes"] == ours[1]["state_bytes"] > 0
  assert code == 1 and all("torch" in row["error"] and row["system"] == "transformers" for row in peers)


@pytest.mark.slow
def test_a_server_gives_a_row_for_each_load_with_answers_that_equal_offline_ones(capsys):
  code, rows, err = run(capsys, "serve", "--clients=1,3", "--prompt_tokens=9", "--new_tokens=3",
                        "--repeats=1", "--config.serve.slots=2", "--config.serve.group_rows=2", "--json")
  assert code == 0, err
  assert [(row["clients"], row["answers"], row["equal"], row["lost"]) for row in rows] == [
    (1, 8, 8, 0), (3, 8, 8, 0)]  # fmt: skip
  for row in rows:
    assert all(row[name] > 0 for name, _ in bench_serve.TABLE if name != "lost")
    assert row["weights"] == "untrained" and row["first_token_s_median"] <= row["first_token_s_p95"]
  assert rows[0]["speedup"] == 1


def test_a_lost_or_wrong_answer_is_an_error_and_no_rate():
  answers = [bench_server.Answer(200, (1, 2), "", 0.1, 0.2), bench_server.Answer(0, (1,), error="went away")]
  load = bench_server.Load(answers, 1.0, 0.5)
  found = bench_serve.figures([load], [[1, 2], [1]])
  assert (found["lost"], found["equal"]) == (1, 2) and "went away" in found["error"]
  whole = load._replace(answers=[answers[0]])
  assert "0 are right" in bench_serve.figures([whole], [[1, 3]])["error"]
  right = bench_serve.figures([whole], [[1, 2]])
  measured = [right[name] for name in ("tokens_per_s", "cpu_s_per_1000_tokens", "first_token_s_median")]
  assert measured == [2, 250, 0.1]


def test_groups_of_several_sizes_are_measured_in_turn(capsys):
  code, rows, _ = run(capsys, "decode", SMOKE, "--lengths=8", "--piece=8",
                      "--new_tokens=2", "--repeats=1", "--rows=1,3", "--json")
  assert code == 0 and [row["rows"] for row in rows] == [1, 3]
  assert rows[0]["gain"] is None
  assert rows[1]["gain"] == pytest.approx(rows[1]["tokens_per_s"] / rows[0]["tokens_per_s"], rel=0.1)
  assert rows[1]["cpu_gain"] > 0


def test_a_session_of_the_runtime_and_its_messages_are_within_their_bars(capsys):
  code, rows, err = run(capsys, "runtime", "--what=session,messages", "--repeats=1", "--json")
  assert code == 0, err
  assert [(row["what"], row["met"]) for row in rows] == [("session", True), ("messages", True)]
  assert 0 < rows[0]["statements"] <= 8 and 0 < rows[0]["bytes"] <= 9_000 and rows[1]["teacher_chars"] > 0


def test_a_lost_session_of_the_runtime_is_an_error_and_a_slow_one_misses_its_bar():
  row = {name: None for name, _ in bench_runtime.TABLE}
  lost = bench_runtime.judged({**row, "sessions": 40, "ended": 5, "stored": 5, "connections": 3})
  assert not lost["met"] and "of 40 sessions 5 ended" in lost["error"]
  slow = bench_runtime.judged({**row, "judge_calls": 0, "cpu_ms": 5.1})
  assert not slow["met"] and "error" not in slow and slow["bar"] == "cpu_ms <= 5"
