"""Judges runs by the rules of their alerts, afterwards or while they train.

  python -m atlas_jax.monitor.alerts --runs=runs
  python -m atlas_jax.monitor.alerts --runs=runs --json
  python -m atlas_jax.monitor.alerts --runs=runs --watch

Without --watch: one line per alarm on standard output; the exit status is 0 if there was none, 1 if there
was, 2 for wrong input. With --watch it looks every few seconds until it is interrupted, and sends what a
trainer that is dead cannot tell itself.
"""
import argparse
import json
import sys

from absl import logging

from atlas_jax.files import closed_pipe
from atlas_jax.monitor.alerts import afterwards, watch
from atlas_jax.monitor.alerts.afterwards import Verdict


@closed_pipe.quiet
def main(argv: list[str]) -> int:
  """Runs the program; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m atlas_jax.monitor.alerts", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", required=True, help="a run directory, or a folder of them")
  parser.add_argument("--json", action="store_true", help="print verdicts as JSON")
  parser.add_argument("--watch", action="store_true", help="look again and again, and send alarms")
  parser.add_argument("--every_s", type=float, default=5.0, help="--watch: seconds between looks")
  parser.add_argument("--sinks", help="--watch: log, telegram, webhook, email, with commas; default: "
                      "those of each run's config.alerts.sinks")
  asked = parser.parse_args(argv)
  logging.set_verbosity(logging.INFO)
  try:
    _check(asked)
    if asked.watch:
      return watch.watch(asked.runs, every_s=asked.every_s, names=asked.sinks)
    verdicts = [afterwards.judge(run) for run in afterwards.runs_of(asked.runs)]
  except ValueError as error:
    print(f"alerts: {error}", file=sys.stderr)
    return 2
  for verdict in verdicts:
    if verdict.problem:
      print(f"alerts: {verdict.problem}; rows behind it are not judged", file=sys.stderr)
  if asked.json:
    print(json.dumps({"runs": [verdict.as_json() for verdict in verdicts]}, indent=2))
  else:
    print("\n".join(line for verdict in verdicts for line in lines(verdict)))
  return 1 if any(verdict.alarms for verdict in verdicts) else 0


def lines(verdict: Verdict) -> list[str]:
  """Returns a line for each alarm, or one that says that there is none, and what is not known."""
  unknown = ", ".join(verdict.unknown)
  rest = f" (not judged: {unknown})" if unknown else ""
  if not verdict.alarms:
    return [f"{verdict.run}: no alarm in {_rows(verdict)}{rest}"]
  last = {event.rule: event for event in verdict.events}
  found = []
  for event in verdict.alarms:
    over = "" if last[event.rule].state == "firing" else f" [over at step {last[event.rule].step}]"
    found.append(f"{verdict.run}: {event.severity}: {event.rule} at step {event.step}: {event.text}{over}")
  return [*found, *([f"{verdict.run}: not judged: {unknown}"] if unknown else [])]


def _rows(verdict: Verdict) -> str:
  return "a run without rows" if verdict.step is None else f"{verdict.step} updates"


def _check(asked: argparse.Namespace) -> None:
  if not asked.every_s > 0:
    raise ValueError(f"--every_s={asked.every_s} must be above 0")
  if asked.watch and asked.json:
    raise ValueError("--json prints verdicts once, and --watch looks again and again; leave one out")
  if asked.sinks is not None and not asked.watch:
    raise ValueError(f"--sinks={asked.sinks} is for --watch, which sends; leave it out")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
