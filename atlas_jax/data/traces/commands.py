"""Commands on a store of traces: `arc-atlas`, the same as `python scripts/traces.py`.

  arc-atlas init --database-url=sqlite:///traces.db
  arc-atlas import --database-url=sqlite:///traces.db --input=traces.jsonl
  arc-atlas review sessions --status pending
  arc-atlas review show 17
  arc-atlas review approve 17 18 --reviewer=ada --note="checked"
  arc-atlas review quarantine --where learning_key=pumps --reviewer=ada --note="wrong log"
  arc-atlas review drift 17
  arc-atlas export --output=out.jsonl --since=2026-01-01

`export` may be left out. A store is named by --database-url, or by STORAGE__DATABASE_URL or DATABASE_URL.

Exit codes: 0 done; 1 nothing was written, no such session, or a decision that was refused; 2 a wrong flag;
4 a store that is not reached, or has other tables; 130 interrupted.
"""
import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from atlas_jax.data.traces import connections, drift, export, query, review, rows, store
from atlas_jax.data.traces.jsonl import TraceReader
