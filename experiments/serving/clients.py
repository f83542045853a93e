"""Tries clients of others against a server that runs, and prints a table of what passes and what cannot.

  python -m atlas_jax.main --mode=serve --workdir=runs/serving_chat --port=8000 &
  python -m experiments.serving.clients --url=http://127.0.0.1:8000
  python -m experiments.serving.clients --url=http://127.0.0.1:8000 --with=langchain

The first takes the package `openai` and the program `curl`. LangChain needs an environment of its own with
langchain-openai, and nothing of this project's. Tokens, where the server has some: the first of
ATLAS_JAX_SERVE_TOKENS in the environment. Exits 1 if a check fails.
"""
import argparse
import importlib
import importlib.metadata
import os
import subprocess
import sys
import time

from experiments.serving import target

# The package of each, for its version.
MODULES = {"openai": "openai", "curl": None, "langchain": "langchain-openai"}


def version_of(name: str) -> str:
  """Returns a client with its version, for the table's head."""
  package = MODULES[name]
  if package is not None:
    return f"{package} {importlib.metadata.version(package)}"
  return " ".join(subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
                  .stdout.split()[:2])


def main(argv: list[str] | None = None) -> int:
  """Runs the checks and returns the exit code."""
  flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  flags.add_argument("--url", required=True, help="of the server, without /v1")
  flags.add_argument("--model", help="name in requests; left out: the server's first")
  flags.add_argument("--with", dest="chosen", default="openai,curl", help=f"of {', '.join(MODULES)}")
  asked = flags.parse_args(argv)
  token = os.environ.get("ATLAS_JAX_SERVE_TOKENS", "").split(",")[0].strip()
  at = target.find(asked.url.rstrip("/"), token, asked.model)
  failed = 0
  for name in asked.chosen.split(","):
    checks = importlib.import_module(f"experiments.serving.{name}_checks").CHECKS
    can = ", ".join(f"{what} {at.described[what]}" for what in ("chat", "tools", "memory"))
    print(f"\n{version_of(name)}; model {at.model}: {can}\n\n"
          "| check | result | | s |\n| --- | --- | --- | --- |")
    for check in checks:
      began = time.monotonic()
      result, note = target.outcome(check, at)
      failed += result == "FAIL"
      told = " ".join((check.__doc__ or check.__name__).split())
      print(f"| {told} | {result} | {note.replace('|', '/')} | {time.monotonic() - began:.1f} |", flush=True)
  print(f"\n{failed} failed")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
