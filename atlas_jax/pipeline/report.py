"""The report of a pipeline, as JSON, Markdown and a picture: before and after, and what got worse."""
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.evals import teaching
from atlas_jax.files import write
from atlas_jax.files.damage import clipped
from atlas_jax.monitor import report as run_report
from atlas_jax.monitor.idle import LEARNABLE
from atlas_jax.pipeline import ingest, picture, places
from atlas_jax.pipeline.plan import Plan, held_out_frac

# Numbers of a report, by their names in a summary, and what they are; others stand in eval.json.
SHOWN = {
    "teaching_baseline_accuracy": "student alone, accuracy", "teaching_accuracy": "with guidance, accuracy",
    "teaching_placebo_accuracy": "with guidance of another question, accuracy",
    "teaching_fixed_accuracy": "with one fixed hint, accuracy",
    "teaching_learning_rate": "LR, mean gain by guidance",
    "teaching_non_degradation_rate": "NDR, fraction not made worse",
    "teaching_degradation_severity": "mean loss where it got worse",
    "teaching_recovery_rate": "wrong answers made right",
    "teaching_learning_efficiency_per_1k": "LES, gain per 1,000 tokens of guidance",
    "teaching_teaching_efficiency_score": "TES, gain times completion per 1,000 tokens",
    "teaching_completion_rate": "guided answers that end by themselves",
    "teaching_token_efficiency": "tokens that guided answers save",
    "teaching_guidance_tokens": "tokens of a guidance", "teaching_leaked_frac": "guidance that holds the "
                                                                                "answer",
    "teaching_malformed_frac": "replies that are none",
    "teaching_silent_frac": "questions whose guidance is empty", "teaching_t_p": "p of the paired t-test",
    "teaching_mcnemar_p": "p of McNemar's test", "teaching_cohens_d": "Cohen's d of the pairs",
    "teaching_contaminated_frac": "held-out prompts that show the answer",
    "teaching_graded_count": "questions graded",
    "val_accuracy": "accuracy", "val_length_tokens": "tokens of an answer",
    "val_ended_frac": "answers that end by themselves", "val_graded_count": "questions graded",
    "val_divergence_nats": "divergence from the teacher, nats", "val_loss_nats": "loss, nats"}
FRACTIONS = ("accuracy", "non_degradation_rate")
COLUMNS = {"before": "before", "after_sft": "after supervised tuning", "after": "after"}
BY_GUIDANCE = "teaching_accuracy"  # Where it is, answers with and without guidance were compared.
TEACHING = "teaching_"  # Begins the names of such measures.
WORST = 8
SHOWN_CHARS = 160


def make(plan: Plan, data: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the report and returns it.

  Args:
    plan: resolved.
    data: of the ingest.
    measured: evaluations by name; None for one that was not made.
  """
  found = contents(plan, data, measured, run_report.read_metrics(plan.training.workdir))
  write.json(plan.output / places.EVAL, found)
  write.whole(plan.output / places.EVAL_TEXT, text(found))
  target = plan.output / places.EVAL_PICTURE
  if not picture.draw(found, target):
    target.unlink(missing_ok=True)
  return found


def contents(plan: Plan, data: Mapping[str, Any], measured: Mapping[str, Any],
             rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what eval.json holds; `rows` are the metrics of the training."""
  made = {name: one for name, one in measured.items() if one}
  before, after = ((made[name]["metrics"] if name in made else {}) for name in ("before", "after"))
  change = {name: after[name] - before[name] for name in after if name in before and _is_value(name)}
  config = plan.training.config
  return {
      "recipe": config.recipe, "config": plan.training.spec, "seed": config.seed, "data": dict(data),
      "held_out_frac": held_out_frac(config), "evaluations": made, "change": change,
      "intervals": "95%, bootstrap over questions",
      "student_over_itself": _of_student(before, after),
      "caveats": caveats(after),
      "warnings": warnings(plan, data, made, learnable(rows))}


def _of_student(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any] | None:
  """Compares a student that was distilled with itself before; None where there is no such student."""
  if "val_accuracy" not in before or "val_accuracy" not in after:
    return None
  return teaching.baseline_comparison(after["val_accuracy"], after.get("val_length_tokens"),
                                      baseline_success=before["val_accuracy"],
                                      baseline_tokens=before.get("val_length_tokens"))


def learnable(rows: Sequence[Mapping[str, Any]]) -> float | None:
  """Returns the largest fraction of completions of an update that taught anything; None: not known."""
  known = [row[LEARNABLE] for row in rows if LEARNABLE in row]
  return max(known, default=None)


def warnings(plan: Plan, data: Mapping[str, Any], made: Mapping[str, Any], learnt: float | None) -> list[str]:
  """Returns what a reader must know before believing a number; `learnt` is of `learnable`."""
  found = []
  if plan.is_demo:
    found.append("The config is a demonstration: a small model that shows the way and learns little.")
  if not made:
    found.append("Nothing was evaluated, because no question was held out: there is no evidence that the "
                 "teacher helps, or does no harm.")
  if data["questions"] < ingest.FEW:
    found.append(f"The sessions ask {ingest.counted(data['questions'], 'question')}, fewer than "
                 f"{ingest.FEW}: too few to learn from, and for a measurement to mean anything.")
  if learnt is not None and learnt == 0:
    found.append("No update had anything to learn from: all completions of a question earned the same. Look "
                 "at train/completions/, and at docs/guides/learns_nothing.md.")
  if data["with_ground_truth"] < data["let_in"]:
    found.append(f"{data['let_in'] - data['with_ground_truth']} of {data['let_in']} sessions have no right "
                 "answer, and a grader that compares with one leaves them out.")
  after = made["after"]["metrics"] if "after" in made else {}
  found += caveats(after)
  ndr = after.get("teaching_non_degradation_rate")
  if ndr is not None and ndr < 0.97:
    found.append(f"Guidance made {100 * (1 - ndr):.1f}% of the answers worse; the target is at most 3%.")
  low = after.get("teaching_learning_rate_low")
  if low is not None and low <= 0:
    found.append("The interval of the gain holds zero: guidance was not shown to help.")
  if after.get("teaching_contaminated_frac"):
    found.append(f"{100 * after['teaching_contaminated_frac']:.1f}% of the held-out prompts show the answer.")
  before = made["before"]["metrics"] if "before" in made else {}
  if "val_accuracy" in after and after["val_accuracy"] <= before.get("val_accuracy", -1.0):
    found.append("The model answers no more held-out questions than before.")
  over = after.get("teaching_over_placebo")
  if over is not None and over <= 0 < after.get("teaching_learning_rate", 0.0):
    found.append("Guidance of another question helps as much: what helps is not what the guidance says.")
  return found


def caveats(metrics: Mapping[str, float]) -> list[str]:
  """Returns the caveats of a teacher's evaluation; of other recipes there are none."""
  return teaching.caveats({name.removeprefix(TEACHING): value for name, value in metrics.items()
                           if name.startswith(TEACHING)})


def text(found: Mapping[str, Any]) -> str:
  """Returns the report as Markdown."""
  made = found["evaluations"]
  columns = [name for name in COLUMNS if name in made]
  lines = [f"# {found['recipe']}: before and after", "", ingest.in_words(found["data"]) + ".", ""]
  lines += [f"- **{one}**" for one in found["warnings"]] + ([""] if found["warnings"] else [])
  if columns:
    lines += [f"{100 * found['held_out_frac']:g}% of the questions were held out, and asked with the same "
              f"seeds each time. Intervals: {found['intervals']}.", "",
              f"| | {' | '.join(COLUMNS[name] for name in columns)} | change |",
              f"| --- |{' --- |' * (len(columns) + 1)}"]
    for name, words in SHOWN.items():
      if any(name in made[column]["metrics"] for column in columns):
        cells = [cell(made[column]["metrics"], name) for column in columns]
        change = found["change"].get(name)
        lines.append(f"| {words} | {' | '.join(cells)} | {'' if change is None else f'{change:+.4g}'} |")
    lines += ["", *(_worst(made, columns) if BY_GUIDANCE in made[columns[-1]]["metrics"] else []),
              *_in_words(found["student_over_itself"])]
  return "\n".join(lines) + "\n"


def _in_words(student: Mapping[str, Any] | None) -> list[str]:
  if student is None:
    return []
  saved = student["token_reduction_pct"]
  tokens = "" if saved is None else (f", and an answer has {saved:.1f}% fewer tokens (the target is "
                                     f"{teaching.TOKEN_TARGET_PCT:g}%)")
  return [f"The student over itself before: {100 * student['success_delta']:+.1f} points of accuracy (the "
          f"target is +{100 * teaching.SUCCESS_TARGET:g}){tokens}."]


def cell(metrics: Mapping[str, float], name: str) -> str:
  """Returns a number with its interval."""
  if name not in metrics:
    return "–"
  low, high = (metrics.get(f"{name}_{end}") for end in ("low", "high"))
  if name.endswith(FRACTIONS) and low is not None and high is not None:
    low, high = max(0.0, low), min(1.0, high)  # For few questions they are widened beyond what can be.
  interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
  return f"{metrics[name]:.4g}{interval}"


def _worst(made: Mapping[str, Any], columns: list[str]) -> list[str]:
  last = columns[-1]
  rows = made[last]["worst"][:WORST]
  if not rows:
    return [f"No graded answer got worse by guidance ({COLUMNS[last]})."]
  lines = [f"## The answers that guidance spoilt most ({COLUMNS[last]})", "",
           "| question | without | guidance | with |", "| --- | --- | --- | --- |"]
  for row in rows:
    shown = [_short(row.get(name)) for name in ("question", "baseline", "guidance", "guided")]
    lines.append(f"| {shown[0]} | {shown[1]} ({row['without']:g}) | {shown[2]} | {shown[3]} "
                 f"({row['with']:g}) |")
  return lines


def _short(value: Any) -> str:
  # A line break or a bar would end the cell.
  words = " ".join(str("" if value is None else value).split()).replace("|", "\\|")
  return clipped(words, SHOWN_CHARS)


def _is_value(name: str) -> bool:
  # Ends of intervals, p-values and numbers of questions change without anything having become better.
  return not name.endswith(("_low", "_high", "_p", "_count", "cohens_d"))
