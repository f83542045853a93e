"""Sends a test message by each configured sink of the alerts, or prints what would be sent.

  python scripts/test_alert.py --sinks=telegram,email
  python scripts/test_alert.py --workdir=runs/quickstart --dry_run

Secrets come from the environment, see docs/guides/alerts.md. The exit status is 1 if a sink failed, and 2 for
wrong input, such as variables that are missing.
"""
import argparse
import os
import sys

from atlas_jax import config as configs
from atlas_jax.files import closed_pipe
from atlas_jax.monitor.alerts import sinks
from atlas_jax.monitor.alerts.message import Message, redacted

TEST = Message(run="test_alert", rule="test", severity="info", state="told", step=0, metric="train/loss_nats",
               value=1.5,
               text="This is a test: names_with_underscores, <b>, & and *stars* arrive as they are.")


@closed_pipe.quiet
def main(argv: list[str]) -> int:
  """Runs the program; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sinks", help="log, telegram, webhook, email, with commas")
  parser.add_argument("--workdir", help="of a run, whose config.alerts.sinks are tested")
  parser.add_argument("--dry_run", action="store_true", help="print what would be sent, and send nothing")
  asked = parser.parse_args(argv)
  try:
    if (asked.sinks is None) == (asked.workdir is None):
      raise ValueError("give --sinks=NAMES or --workdir=RUN, one of them")
    names = asked.sinks or configs.load(asked.workdir, trusted=True).alerts.sinks
    places = sinks.make(names, os.environ, timeout_s=10.0, field="--sinks" if asked.sinks else
                        "config.alerts.sinks")
  except ValueError as error:
    print(f"test_alert: {error}", file=sys.stderr)
    return 2
  failed = False
  for place in places:
    if asked.dry_run:
      print(f"{place.name} would get:\n{redacted(place.preview(TEST), place.secrets)}\n")
      continue
    try:
      place.send(TEST)
      print(f"{place.name}: sent")
    except sinks.SendError as error:
      failed = True
      print(f"{place.name}: failed: {error}")
  return int(failed)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
