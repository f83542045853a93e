"""Runs commands on a store of traces; the same program as `arc-atlas`, see atlas_jax/data/traces/commands.py.

  python scripts/traces.py init --database-url=sqlite:///traces.db
  python scripts/traces.py export --database-url=sqlite:///traces.db --output=out.jsonl
  python scripts/traces.py review sessions --database-url=sqlite:///traces.db
"""
import sys

from atlas_jax.data.traces import commands

if __name__ == "__main__":
  sys.exit(commands.main())
