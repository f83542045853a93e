"""Makes a run that has made no update, of the model that a config starts from, for a server to begin with.

  python scripts/launch_start.py --config=configs/grpo_arithmetic.py:cpu --workdir=DIR

Flags are those of `python -m atlas_jax.main`; the sampler is the native one, whatever the config says.
"""
import sys

from atlas_jax import command, modes
from atlas_jax import config as configs
from atlas_jax.explain import explain, start_log


def main(argv: list[str]) -> int:
  """Makes the run; returns the exit code."""
  start_log()
  try:
    asked, overrides = command.parse(argv)
    command.check_flags(asked, overrides)
    config = configs.resolve(command.read_config(asked.config, {**overrides, "sampler.kind": "native"}))
    modes.leave_start(config, asked.workdir)
  except Exception as error:
    if (line := explain(error, None)) is None:
      raise
    print(f"launch_start: {line}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
