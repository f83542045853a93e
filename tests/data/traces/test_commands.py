"""The commands have the SDK's flags, say what they do in one line, and end with the code that it means."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from atlas_jax.data.traces import commands, store
from tests import stores

ROOT = pathlib.Path(__file__).parents[3]
LINES = str(stores.FIXTURES / "export_all.jsonl")
FLAGS = stores.read_json("cli.json")


@pytest.fixture
def run(store_url, capsys):
  """Runs a command on a store with the four sessions; returns (code, out, err)."""
  def call(*argv, **environment):
    code = commands.main([str(one) for one in argv], {"DATABASE_URL": store_url, **environment})
    said = capsys.readouterr()
    return code, said.out, said.err
  assert call("init")[0] == 0
  assert call("import", "--input", LINES)[0] == 0
  return call


def ids(path):
  return [json.loads(line)["session_metadata"]["session_id"] for line in path.read_text().splitlines()]


def flags_of(parser):
  return {flag for action in parser._actions for flag in action.option_strings or [action.dest]}


def command(*names):
  parser = commands.parser({})
  for name in names:
    [actions] = [one for one in parser._actions if hasattr(one, "choices") and isinstance(one.choices, dict)]
    parser = actions.choices[name]
  return parser


def test_the_sdks_flags_are_there_with_their_defaults():
  parser = command("export")
  for flag in FLAGS["export_flags"]:
    assert set(flag["flags"]) <= flags_of(parser)
    if flag["default"] not in ("==SUPPRESS==", None):
      assert parser.get_default(flag["flags"][0].lstrip("-").replace("-", "_")) == flag["default"]
  for name, flags in FLAGS["review_subcommands"].items():
    parser = command("review", name)
    for flag in flags:
      assert set(flag["flags"]) <= flags_of(parser)
      if isinstance(flag["default"], int):
        assert parser.get_default(flag["flags"][0].lstrip("-").replace("-", "_")) == flag["default"]


def test_export_may_be_left_out_and_says_what_review_holds_back(run, tmp_path):
  code, out, _ = run("--output", tmp_path / "out.jsonl")
  assert code == 0 and "Exported 1 sessions (2 steps)" in out and "2 pending, 1 quarantined" in out
  assert ids(tmp_path / "out.jsonl") == [1]
  assert run("export", "--output", tmp_path / "out.jsonl", "--quiet")[:2] == (0, "")


@pytest.mark.parametrize("flags, found", [
  (["--include-status", "pending"], [4, 2]),
  (["--include-status", "pending", "--legacy"], [4, 2, 1]),
  (["--include-status", "approved", "--limit", "1"], [1]),
  (["--include-all-statuses"], [4, 3, 2, 1]),
  (["--include-all-statuses", "--oldest-first", "--limit", "2", "--offset", "1"], [2, 3]),
  (["--include-all-statuses", "--session-id", "2", "--session-id", "1", "--session-id", "2"], [2, 1]),
  (["--include-all-statuses", "--status", "FAILED"], [4]),
  (["--include-all-statuses", "--since", "2025-01-02T12:03:00Z"], [4, 3]),
  (["--include-all-statuses", "--cursor", "2025-01-02T12:03:00+00:00/3"], [2, 1]),
  (["--include-all-statuses", "--learning-key", "bearing"], [3]),
  (["--include-all-statuses", "--min-reward", "0.9", "--batch-size", "1"], [2]),
], ids=str)
def test_flags_select(run, tmp_path, flags, found):
  assert run("export", "--output", tmp_path / "out.jsonl", *flags)[0] == 0
  assert ids(tmp_path / "out.jsonl") == found


def test_the_environment_opens_the_gate_where_no_flag_says_otherwise(run, tmp_path):
  out = tmp_path / "out.jsonl"
  assert run("--output", out, ATLAS_REVIEW_REQUIRE_APPROVAL="0")[0] == 0
  assert ids(out) == [4, 2, 1]
  run("--output", out, "--include-status", "quarantined", ATLAS_REVIEW_REQUIRE_APPROVAL="0")
  assert ids(out) == [3]


def test_records_are_scrubbed_by_a_function_of_ones_own(run, tmp_path, monkeypatch):
  (tmp_path / "no_names.py").write_text("def scrub(record):\n  return {**record, 'task': 'gone'}\n")
  monkeypatch.syspath_prepend(tmp_path)
  out = tmp_path / "out.jsonl"
  assert run("--output", out, "--scrub", "no_names")[0] == 0
  assert json.loads(out.read_text())["task"] == "gone"
  assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text())["scrubbed"] is True
  for module, said in (("no_such_module", "No module named"), ("json", "defines no function scrub")):
    code, _, err = run("--output", out, "--scrub", module)
    assert code == 2 and said in err


def test_events_are_capped_to_the_newest(run, tmp_path):
  run("--output", tmp_path / "out.jsonl", "--trajectory-event-limit", "2")
  [line] = (tmp_path / "out.jsonl").read_text().splitlines()
  assert [event["id"] for event in json.loads(line)["trajectory_events"]] == [3, 4]


def test_nothing_to_export_is_one_line_and_code_1(run, tmp_path):
  code, _, err = run("--output", tmp_path / "out.jsonl", "--learning-key", "bearing")
  assert code == 1 and err.count("\n") == 1 and "the review gate holds back 1 quarantined" in err
  assert not (tmp_path / "out.jsonl").exists()
  code, _, err = run("--output", tmp_path / "out.jsonl", "--session-id", "77")
  assert code == 1 and "no session 77" in err


@pytest.mark.parametrize("argv, said", [
  (["--output", "o", "--cursor", "x"], "cursor"),
  (["--output", "o", "--config", "c.yaml"], "--config is not read"),
  (["--output", "o", "--limit", "0"], "no number from 1"), (["--output", "o", "--since", "soon"], "no time"),
  (["--output", "o", "--colour"], "unrecognized"), (["review", "approve"], "by id, or by --where"),
  (["review", "approve", "--where", "colour=red"], "write NAME=VALUE"), (["export"], "--output"),
  (["--output", "o", "--legacy", "--compact"], "not allowed"), (["review", "burn"], "invalid choice"),
], ids=str)
def test_wrong_flags_are_code_2(run, argv, said):
  code, out, err = run(*argv)
  assert code == 2 and said in err and out == ""


def test_sessions_are_reviewed(run, tmp_path):
  code, out, _ = run("review", "sessions")
  assert code == 0
  assert "Status: pending (2 of 2 sessions)" in out and "Status: quarantined (1 of 1 sessions)" in out
  assert run("review", "sessions", "--status", "pending", "--limit", "1", "--quiet")[1] == "4\n"
  assert run("review", "sessions", "--status", "pending", "--offset", "2")[1].endswith("(none)\n")
  assert run("review", "approve", 2, 3, "--reviewer", "ada", "--note", "fine")[:2] == (
    0, "Session 2: pending -> approved\nSession 3: quarantined -> approved\n")
  assert run("review", "approve", 2)[1] == "Session 2 is approved already\n"
  code, out, _ = run("review", "show", 2)
  record, _, moves = out.rpartition("}\n")
  assert json.loads(record + "}")["task"] == "Give the pump serial number"
  assert code == 0 and "pending -> approved  by ada: fine" in moves
  run("--output", tmp_path / "out.jsonl")
  assert ids(tmp_path / "out.jsonl") == [3, 2, 1]


def test_sessions_are_reviewed_by_what_they_are(run):
  failed = ("--where", "status=failed", "--note", "crash")
  code, out, _ = run("review", "quarantine", *failed, ATLAS_REVIEWER="bo")
  assert (code, out) == (0, "Session 4: pending -> quarantined\n")
  assert "by bo: crash" in run("review", "show", 4)[1]
  # Only what is pending: one cannot approve by a word what was quarantined by a look.
  assert run("review", "approve", "--where", "learning_key=bearing")[0] == 1
  assert run("review", "approve", "--where", "min_reward=0.9", "--where", "since=2025-01-01")[0] == 0
  assert run("review", "sessions", "--status", "pending", "--quiet")[1] == ""


def test_unknown_sessions_and_withdrawals_without_a_note_are_code_1(run):
  for argv in (["review", "approve", "999999"], ["review", "show", "99"], ["review", "drift", "99"],
               ["review", "quarantine", "1"]):
    code, _, err = run(*argv)
    assert code == 1 and err.startswith("arc-atlas: ") and err.count("\n") == 1


def test_a_session_that_still_runs_is_exported_only_if_that_is_asked_for(run, tmp_path):
  row = {"task": "t", "review_status": "approved", "session_metadata": {"session_id": 9, "status": "Running"}}
  (tmp_path / "run.jsonl").write_text(json.dumps(row) + "\n")
  assert run("import", "--input", tmp_path / "run.jsonl")[0] == 0
  out = tmp_path / "out.jsonl"
  code, said, _ = run("export", "--output", out)
  assert code == 0 and ids(out) == [1] and "2 pending, 1 quarantined, 1 running" in said
  assert run("export", "--output", out, "--status", "running")[0] == 0 and ids(out) == [9]
  assert run("export", "--output", out, "--include-all-statuses")[0] == 0 and ids(out) == [9, 4, 3, 2, 1]


@pytest.mark.parametrize("argv", [
  ["review", "approve", "--where", "since=soon"], ["review", "approve", "--where", "min_reward=much"],
  ["review", "approve", "9" * 20], ["export", "--output=o", "--offset", "9" * 20],
  ["export", "--output=o", "--batch-size", "9" * 400],
  ["export", "--output=o", "--cursor=2026-01-01/" + "9" * 20],
  ["export", "--output=o", "--trajectory-event-limit", "9" * 20]], ids=str)
def test_a_value_that_cannot_be_is_code_2(run, tmp_path, monkeypatch, argv):
  monkeypatch.chdir(tmp_path)
  code, _, err = run(*argv)
  assert code == 2 and "arc-atlas" in err and "Traceback" not in err


def test_a_device_is_not_replaced_by_a_file(run, tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  code, _, err = run("export", "--output", pipe)
  assert code == 1 and "is a device or pipe" in err and pipe.is_fifo()
  assert [file.name for file in tmp_path.iterdir() if file.suffix != ".db"] == ["pipe"]


def test_drift_is_shown_and_kept(run):
  assert run("review", "drift", 2)[:2] == (0, "no drift (insufficient_baseline)\n")
  assert run("review", "drift", 2, "--keep")[0] == 0
  assert '"reason": "insufficient_baseline"' in run("review", "show", 2)[1]
  assert run("review", "drift", 4)[0] == 1


def test_rejected_lines_are_told_and_kept(run, tmp_path):
  mixed = tmp_path / "mixed.jsonl"
  mixed.write_text("\n".join(['{"task": "t"}'] * 30) + '\n{"no": "task"}\n')
  code, out, err = run("import", "--input", mixed, "--rejects", tmp_path / "rejects.jsonl")
  assert code == 0 and "Wrote 1 sessions" in out and "1 lines are no traces, 29 stood there before" in out
  assert "mixed.jsonl:31" in err and json.loads((tmp_path / "rejects.jsonl").read_text())["line"] == 31
  mixed.write_text("".join(f'{{"task": "one more {number}"}}\n' for number in range(store.WRITE_ROWS + 1))
                   + '{"no": "task"}\n')
  assert run("import", "--input", mixed, "--strict")[0] == 2
  assert "one more" not in run("review", "sessions")[1]  # Nor is what stands before the bad line written.


def test_a_store_that_is_not_reached_is_one_line_and_code_4(tmp_path, capsys):
  for url in (f"sqlite:///{tmp_path}/none.db", "postgresql://me:s3cr3t@127.0.0.1:9/x?connect_timeout=2"):
    for argv in (["--output", str(tmp_path / "o")], ["review", "sessions"], ["review", "approve", "1"]):
      assert commands.main(argv, {"STORAGE__DATABASE_URL": url}) == 4
      said = capsys.readouterr()
      assert said.out == "" and said.err.count("\n") == 1 and "s3cr3t" not in said.err


def test_a_store_without_tables_names_the_command(store_url, tmp_path, capsys):
  if store_url.startswith("sqlite"):
    (tmp_path / "traces.db").touch()
  assert commands.main(["review", "sessions", "--database-url", store_url], {}) == 4
  assert "arc-atlas init" in capsys.readouterr().err


def test_no_store_is_a_wrong_flag(capsys):
  assert commands.main(["review", "sessions"], {}) == 2
  assert "--database-url" in capsys.readouterr().err


def test_the_script_is_the_same_program(tmp_path):
  call = [sys.executable, "scripts/traces.py", "init", f"--database-url=sqlite:///{tmp_path}/t.db"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=environment)
  assert done.returncode == 0 and "applied 1, 2" in done.stdout and done.stderr == ""


def test_keys_that_nothing_reads_are_named_by_an_import(run, tmp_path):
  file = tmp_path / "own.jsonl"
  rows = [{"task": f"{number}+1=", "final_answers": "2"} for number in (1, 2)]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert run("init")[0] == 0
  code, _, err = run("import", "--input", file)
  assert code == 0
  assert "the key 'final_answers' (sessions with it: 2) is kept, and nothing reads it" in err
  assert "did you mean 'final_answer'?" in err and "'task'" not in err
