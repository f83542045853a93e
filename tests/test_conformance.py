"""Checks of memories catch what they are for, one fault each; ours passes; what cannot run is named."""

import json
import pathlib
import sys

import numpy as np
import pytest

from experiments.conformance import subject, verdicts
from experiments.conformance.checks import CHECKS
from tests.helpers import quick_compilation

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import conformance  # noqa: E402  Scripts are no package.

WIDTH, CHUNK = 12, 4
RATE = 0.5


class Scripted:
  """The delta rule in NumPy, token by token, with one fault or none.

  State: [B, WIDTH, WIDTH]. The write path's parameter is `keys`, of which keys and queries are made.
  """

  def __init__(self, dtype, seed, fault=""):
    rng = np.random.default_rng([3, seed])
    self.fault, self.dtype = fault, dtype
    self.params = {"keys": rng.normal(size=(WIDTH, WIDTH)), "values": rng.normal(size=(WIDTH, WIDTH))}
    self.left = None

  def _run(self, x, state=None, keep_BT=None, doc_BT=None, params=None):
    params = params or self.params
    keep_BT = np.ones(x.shape[:2], bool) if keep_BT is None or self.fault == "padding" else keep_BT
    doc_BT = np.zeros(x.shape[:2]) if doc_BT is None or self.fault == "packing" else doc_BT
    k_BTD = x @ params["keys"]
    k_BTD = k_BTD / np.linalg.norm(k_BTD, axis=-1, keepdims=True)
    v_BTD = x @ params["values"]
    rows, length, _ = x.shape
    fresh = np.zeros((rows, WIDTH, WIDTH))
    fast = fresh if state is None else state.copy()
    if self.fault == "emptied" and state is None and self.left is not None:
      fast = self.left
    out = np.zeros_like(x)
    for t in range(length):
      if t and (doc_BT[:, t] != doc_BT[:, t - 1]).any():
        fast = fresh.copy()
      error_BD = RATE * keep_BT[:, t, None] * (v_BTD[:, t] - _read(k_BTD[:, t], fast))
      write = np.einsum("bi,bj->bij", k_BTD[:, t], error_BD)
      fast = np.where(keep_BT[:, t, None, None] & (self.fault == "liveness"), 0.97, 1.0) * fast + write
      out[:, t] = _read(k_BTD[:, t], fast)
    if self.fault == "rows":
      out = out + 0.1 * out.mean(axis=0, keepdims=True)
    if self.fault == "causality":
      for row in range(rows):
        real = np.flatnonzero(keep_BT[row])
        same = doc_BT[row, real[1:]] == doc_BT[row, real[:-1]]
        out[row, real[:-1]] += 0.1 * x[row, real[1:]] * same[:, None]
    return out.astype(self.dtype), fast

  def read(self, x, *, keep_BT=None, doc_BT=None):
    out, self.left = self._run(x, keep_BT=keep_BT, doc_BT=doc_BT)
    return out

  def read_on(self, x, state):
    out, state = self._run(x, state)
    return out, 0.9 * state if self.fault == "halves" else state

  def write_parameters(self):
    return self.params

  def loss(self, x, start, nudge):
    params = {name: value + nudge.get(name, 0) for name, value in self.params.items()}
    weight = subject.loss_weights(x.shape, start)
    measure = lambda: subject.mean_loss(self._run(x, params=params)[0], weight)
    if nudge or self.fault == "gradient":
      return measure(), {"values": np.zeros((WIDTH, WIDTH))}
    given = {name: np.zeros_like(value) for name, value in params.items()}
    for name, at in ((name, at) for name, value in params.items() for at in np.ndindex(value.shape)):
      before = params[name][at]
      ends = []
      for sign in (1, -1):
        params[name][at] = before + sign * 1e-6
        ends.append(measure())
      params[name][at] = before
      given[name][at] = (ends[0] - ends[1]) / 2e-6
    return measure(), given


def _read(k_BD, fast):
  return np.einsum("bi,bij->bj", k_BD, fast)


def scripted(fault, **fields):
  """A subject with a fault."""
  build = lambda dtype, seed, **option: Scripted(dtype, seed, **{"fault": fault} | option)
  return subject.Subject(
    name=fault or "sound", build=build, size=WIDTH, chunk=CHUNK, settings="scripted", **fields
  )


def statuses(one):
  """Each check's status."""
  return {check: verdicts.judge(one, check).status for check in CHECKS}


def test_a_sound_memory_passes_every_check():
  assert statuses(scripted("")) == dict.fromkeys(CHECKS, "pass")


@pytest.mark.parametrize("fault", CHECKS)
def test_each_fault_is_caught_by_its_check_alone(fault):
  # A future that ends with the call cannot pass the cut between two of them.
  lacks = {"state": "not offered"} if fault == "causality" else {}
  found = statuses(scripted(fault, lacks=lacks))
  caught = {check for check, status in found.items() if status not in ("pass", "n/a")}
  assert caught == {fault} and found[fault] == "fail"


def test_a_feature_that_is_not_offered_is_not_asked_for_and_says_why():
  found = verdicts.judge(scripted("padding", lacks={"padding": "it has no mask"}), "padding")
  assert (found.status, found.text) == ("n/a", "it has no mask")


def test_a_failed_check_is_run_again_with_the_documented_options_before_it_counts():
  one = scripted("liveness", options={"no retention": {"fault": ""}, "more of it": {"fault": "liveness"}})
  found = verdicts.judge(one, "liveness")
  assert found.status == "option" and "passes with no retention" in found.text
  only = verdicts.judge(scripted("liveness", options={"more of it": {"fault": "liveness"}}), "liveness")
  assert only.status == "fail" and "no better: more of it" in only.text
  tried = [(one["option"], one["seed"]) for one in only.attempts]
  assert tried == [*(("", seed) for seed in range(5)), ("more of it", 0)]


def test_what_the_documentation_says_does_not_hold_is_no_fault():
  found = verdicts.judge(scripted("rows", says={"rows": "its page says that rows are one batch"}), "rows")
  assert found.status == "documented" and found.text.startswith("its page says")
  assert verdicts.judge(scripted("", says={"rows": "its page is wrong"}), "rows").status == "pass"


def test_a_memory_that_is_right_on_the_chunk_grid_alone_passes_in_part():
  class OnGrid(Scripted):
    def read_on(self, x, state):
      out, fast = self._run(x, state)
      return (out if x.shape[1] % CHUNK in (0, 1) and x.shape[1] > 1 else out + 1), fast

  one = scripted("")._replace(build=lambda dtype, seed: OnGrid(dtype, seed))
  assert verdicts.judge(one, "halves").status == "part"


def test_what_raises_is_an_error_with_its_words_after_both_precisions():
  tried = []

  def build(dtype, seed):
    tried.append(dtype)
    raise RuntimeError(f"no kernel for {dtype}")

  found = verdicts.judge(scripted("")._replace(build=build), "rows")
  assert found.status == "error" and "float64: RuntimeError: no kernel for float64" in found.text
  assert tried == ["float64", "float32"]


def test_a_memory_of_float32_inside_passes_in_float32():
  class Narrow(Scripted):
    def read(self, x, **marks):
      return super().read(x, **marks) * (1 + 1e-7 * len(x))

  found = verdicts.judge(scripted("")._replace(build=lambda dtype, seed: Narrow(dtype, seed)), "rows")
  assert (found.status, found.attempts[0]["dtype"]) == ("pass", "float32")


def test_a_memory_whose_reads_grow_without_end_is_not_alive():
  class Grows(Scripted):
    def read(self, x, **marks):
      return super().read(x, **marks) * 1.02 ** np.arange(x.shape[1])[:, None]

  found = verdicts.judge(scripted("")._replace(build=lambda dtype, seed: Grows(dtype, seed)), "liveness")
  assert found.status == "fail" and "reads change in size by a factor of" in found.text


def test_what_a_row_has_left_is_dropped_before_the_next():
  seen = []
  rows = [scripted("", release=lambda: seen.append("released")), scripted("rows")]

  def judged():
    for one in rows:
      seen.append(one.name)
      yield one

  verdicts.judge_all(judged(), ["halves"])
  assert seen == ["sound", "released", "rows"]


@pytest.mark.parametrize("check", CHECKS)
def test_our_default_memory_passes(check):
  adapter = conformance.adapter_of(conformance.OURS)
  # Compilation is most of the time, and smaller chunks make shorter texts.
  with quick_compilation():
    one = adapter.subjects()[0]._replace(chunk=8, lacks={"float64": "quicker"})
    found = verdicts.judge(one, check)
  assert found.status == "pass", found.text


@pytest.mark.parametrize("check", ["causality", "halves", "packing"])
def test_our_language_model_keeps_what_it_offers(check):
  adapter = conformance.adapter_of(conformance.OURS)
  with quick_compilation():
    one = next(one for one in adapter.subjects() if one.name == "LM, context")
    found = verdicts.judge(one._replace(lacks=one.lacks | {"float64": "quicker"}), check)
  # A packed document begins at a chunk's end, as `LM` says, and there it reads as alone.
  assert found.status == ("documented" if check == "packing" else "pass"), found.text
  assert check != "packing" or "right at a chunk's end" in found.text


def test_ours_fails_where_it_does_not_pass_but_for_what_the_language_model_says_of_itself():
  def ours(row, **cells):
    rows = [{"row": row, "cells": {check: {"status": status} for check, status in cells.items()}}]
    return conformance.failed([{"adapter": conformance.OURS, "rows": rows}])

  assert not ours("titans", rows="pass", padding="pass")
  for status in ("documented", "n/a", "part", "fail", "error"):
    assert ours("titans", rows="pass", packing=status) and ours("LM, only", halves=status)
  assert not ours("LM, only", padding="n/a", packing="documented")
  assert ours("LM, only", padding="documented") and ours("LM, only", packing="n/a")
  rows = verdicts.judge_all([scripted("rows", lacks={"padding": "none"})], ["rows", "padding"])
  assert conformance.failed([{"adapter": conformance.OURS, "rows": rows}])
  assert not conformance.failed([{"adapter": "titans_memory", "rows": rows}])
  assert conformance.failed([{"adapter": "titans_memory", "version": "1", "not_run": "it ended"}])


@pytest.mark.parametrize("name", conformance.names())
def test_an_adapter_says_what_it_is_of_without_its_package(name):
  adapter = conformance.adapter_of(name)
  found = adapter.subjects()
  assert adapter.PACKAGE and adapter.DOCUMENTED and found
  for one in found:
    assert one.settings and {*one.lacks} <= {*subject.FEATURES} and all(one.lacks.values())


def test_ours_comes_first_and_a_package_that_is_not_installed_is_named(tmp_path, capsys):
  assert conformance.names()[0] == conformance.OURS
  out = tmp_path / "results.json"
  # Of this Python, which has no such package: its exit status is no failure of ours.
  assert conformance.main(["--only=titans_memory", f"--out={out}"]) == 0
  said = capsys.readouterr().out
  assert "| titans-memory |  | **not run** |" in said and f"installed in none of: {sys.executable}" in said
  assert json.loads(out.read_text())["results"][0]["not_run"]


def test_a_part_of_the_rows_is_not_recorded_as_all(capsys):
  with pytest.raises(SystemExit):
    conformance.main(["--only=ours", "--row=titans", "--out=x.json"])
  assert "--row is for looking at some rows" in capsys.readouterr().err


def test_a_record_keeps_other_adapters_and_refuses_other_checks(tmp_path):
  path = tmp_path / "results.json"
  one, other, ours = ({"adapter": name} for name in ("titans_memory", "nested_learning", "ours"))
  conformance.record(path, [one, other], ["rows"])
  found = conformance.record(path, [one | {"rows": 2}, ours], ["rows"])
  assert found == [ours, other, one | {"rows": 2}]
  assert json.loads(path.read_text())["results"] == found
  with pytest.raises(ValueError, match="name another file, or run the same checks"):
    conformance.record(path, [], ["halves"])


def test_the_table_marks_what_does_not_pass_and_says_how_to_see_it(tmp_path):
  rows = verdicts.judge_all([scripted("rows")], ["rows", "halves"])
  results = [{"adapter": "x", "package": "x", "version": "1", "documented": "its page", "rows": rows}]
  assert "| x | 1 | rows | **fail** | pass |" in conformance.table(results, ["rows", "halves"])
  said = conformance.details(results, ["rows", "halves"])
  assert "- rows, **fail**: x [3, 17, 12] (standard normal float64), seed 0" in said
  assert "- halves" not in said
  assert "--only=x --row=rows --check=CHECK" in said
  page = tmp_path / "page.md"
  page.write_text(f"before\n{conformance.MARKS[0]}\nold\n{conformance.MARKS[1]}\nafter\n")
  conformance.write_page(page, "new")
  assert page.read_text() == f"before\n{conformance.MARKS[0]}\n\nnew\n{conformance.MARKS[1]}\nafter\n"
  page.write_text("no marks")
  with pytest.raises(ValueError, match="add them where the table belongs"):
    conformance.write_page(page, "new")


def test_the_committed_page_is_of_the_committed_results():
  folder = conformance.ADAPTERS.parent
  record = json.loads((folder / "results.json").read_text())
  assert conformance.table(record["results"], record["checks"]) in (folder / "README.md").read_text()
  assert record["checks"] == [*CHECKS] and record["results"][0]["adapter"] == conformance.OURS
  assert {result["adapter"] for result in record["results"]} == {*conformance.names()}
