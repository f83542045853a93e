"""Judges the answers in a file of JSON lines: scores beside it, unusable lines apart, and a summary."""
import collections
import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from atlas_jax import fields
from atlas_jax.files import json_lines, write
from atlas_jax.files.damage import Damaged
from atlas_jax.rollout import async_loop, rewards
from atlas_jax.rollout.judges import case
from atlas_jax.rollout.judges.calibration import calibrated
from atlas_jax.rollout.judges.case import Case
from atlas_jax.rollout.judges.rim import RIMEvaluation, RIMReward

ROWS = 256  # Judged side by side; how many requests that makes at a time is max_workers.
JUDGED, REJECTS, REPLIES = ".judged.jsonl", ".rejects.jsonl", ".replies"


def run(rim, data, out=None) -> dict[str, Any]:
  """Judges all rows of a file.

  A row has `prompt`, `response`, and what else is known by the names of `case.Case`. Replies of an endpoint
  are kept beside the output, so that a run that was broken off asks only for what is missing.

  Args:
    rim: config.rim.
    data: the file.
    out: file of a line for each row; None: the data's name with `JUDGED`.

  Returns:
    Counts of rows, what was rejected, unused columns, means by judge, calls, and calibration by the rows
    whose ground_truth says whether they are right.

  Raises:
    OSError: if a file cannot be read or written.
    ValueError: for settings that cannot be.
  """
  source = pathlib.Path(data).expanduser()
  target = pathlib.Path(out).expanduser() if out else source.with_name(source.stem + JUDGED)
  if target.resolve() == source.resolve():
    raise ValueError(f"--out={target} is the file of --data; name another one")
  settings = fields.flat(rim)
  if rim.backend == "endpoint" and rim.cache_dir is None:
    settings["cache_dir"] = str(target.with_name(target.stem + REPLIES))
  judge = RIMReward(settings)
  began = time.monotonic()
  unused: collections.Counter[str] = collections.Counter()
  rejected: list[dict[str, Any]] = []
  found: list[tuple[RIMEvaluation, bool | None]] = []
  rows = _rows(source, rejected, unused)
  with write.opened(target) as file:
    while part := list(itertools.islice(rows, ROWS)):
      verdicts = async_loop.run(judge.judge_all([one for _, one in part]))
      for (line, one), verdict in zip(part, verdicts, strict=True):
        found.append((_brief(verdict), _is_right(one)))
        file.write(write.json_line(_written(line, verdict, found[-1][1])))
  rejects = target.with_name(target.stem + REJECTS)
  if rejected:
    write.whole(rejects, b"".join(map(write.json_line, rejected)))
  else:
    rejects.unlink(missing_ok=True)  # Of an earlier run, which would be taken for this one's.
  return {"data": str(source), "out": str(target), **_summary(found, judge), "rejected": len(rejected),
          "rejects": str(rejects) if rejected else None, "unused_columns": dict(unused),
          "seconds": round(time.monotonic() - began, 3)}


def _rows(source: pathlib.Path, rejected: list, unused: collections.Counter) -> Iterator[tuple[int, Case]]:
  """Yields (line, case) of each row that can be used; notes the others, and columns that no judge reads."""
  for number, line in enumerate(json_lines.lines(source), start=1):
    if not line.strip():
      continue
    try:
      row = json_lines.parse(source, number, line)
      given = {name: value for name, value in row.items() if name in case.FIELDS and value is not None}
      for name in ("prompt", "response"):
        if not isinstance(given.get(name), str):
          raise ValueError(f"{name} is {type(row.get(name)).__name__}, and must be a text")
    except Damaged as error:
      rejected.append({"line": number, "reason": error.why})
      continue
    except ValueError as error:
      rejected.append({"line": number, "reason": str(error)})
      continue
    unused.update(name for name in row if name not in case.FIELDS)
    yield number, Case(**given)


def _is_right(one: Case) -> bool | None:
  """Returns whether the answer is right, by comparing it with the truth; None without one."""
  if one.ground_truth is None:
    return None
  return rewards.correct(one.prompt, one.response, str(one.ground_truth)) == 1


def _written(line: int, verdict: RIMEvaluation, right: bool | None) -> dict[str, Any]:
  return {"line": line, "score": verdict.score, "rationale": verdict.rationale,
          "judge_scores": dict(verdict.judge_scores), "right": right, "reward": verdict.breakdown,
          "reward_stats": verdict.extra["statistics"], "reward_audit": verdict.extra["audit"],
          "no_verdict": verdict.extra["no_verdict"]}


def _brief(verdict: RIMEvaluation) -> RIMEvaluation:
  """Returns what the summary needs: memory stays small however many rows there are."""
  counts = {name: verdict.extra[name] for name in ("calls", "cached", "tokens", "escalated", "failures")}
  return RIMEvaluation(verdict.score, "", verdict.judge_scores, {}, {}, counts)


def _summary(found: list[tuple[RIMEvaluation, bool | None]], judge: RIMReward) -> dict[str, Any]:
  right = [truth for _, truth in found]
  scores = [verdict.score for verdict, _ in found]
  judges = {name: [verdict.judge_scores[name] for verdict, _ in found] for name in judge.settings.judges}
  failures: collections.Counter[str] = collections.Counter()
  for verdict, _ in found:
    failures.update(verdict.extra["failures"])
  return {
    "rows": len(found), "no_verdict": sum(score is None for score in scores), "mean": _mean(scores),
    "judges": {name: {"mean": _mean(column), "no_verdict": sum(score is None for score in column),
                      "calibration": calibrated(column, right)} for name, column in judges.items()},
    "calibration": calibrated(scores, right), "failures": dict(failures), "unsafe": sorted(judge.unsafe),
    **{name: sum(verdict.extra[name] for verdict, _ in found)
       for name in ("calls", "cached", "tokens", "escalated")}}


def _mean(scores: list[float | None]) -> float | None:
  known = [score for score in scores if score is not None]
  return sum(known) / len(known) if known else None
