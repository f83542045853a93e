"""The runtime's program.

  atlas init
  atlas env init
  atlas run --config=configs/runtime.py:arithmetic --tasks=tasks.jsonl --concurrency=64 --json
  atlas train --config=configs/teacher_rcl.py:cpu --output-dir=results/teacher
  atlas deploy results/teacher
  atlas stats

Fields of the config are set by --config.NAME=VALUE behind any command that takes --config. `arc-atlas`
reviews and exports the sessions.

Exit codes: 0 done; 1 a session failed, or nothing was done; 2 a wrong flag; 3 a config that cannot be; 4 a
store that is not reached; 5 a server that is not; 6 with --require-verified, an answer that is not
verified; 130
interrupted, the same command goes on.
"""
import argparse
import re
import sys
from collections.abc import Sequence

from absl import logging

from atlas_jax.data.traces.connections import StoreError
from atlas_jax.files import closed_pipe
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.runtime import (
  cli_config,
  cli_deploy,
  cli_env,
  cli_eval,
  cli_optimise,
  cli_proxy,
  cli_run,
  cli_store,
  loop,
  settings,
)
from atlas_jax.runtime.cli_codes import CONFIG, ENDPOINT, FAILED, INTERRUPTED, STORE
from atlas_jax.runtime.deploy import DeployError
from atlas_jax.runtime.lanes import LANES
from atlas_jax.runtime.spool import StoreFull


@closed_pipe.quiet
def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns its exit code.

  Args:
    argv: the words behind `atlas`; None: those of the process.
  """
  words, overrides = split(list(sys.argv[1:] if argv is None else argv))
  parsed = parser()
  try:
    asked, rest = parsed.parse_known_args(words)
    if rest and asked.command != "train":
      parsed.error(f"unknown argument {rest[0]!r}")
  except SystemExit as exit_:
    return int(exit_.code or 0)
  asked.overrides, asked.rest = overrides, rest
  cli_config.fill(asked)
  logging.set_verbosity(logging.WARNING)
  try:
    return asked.run(asked)
  except (StoreError, StoreFull) as error:
    return _failed(STORE, error)
  except DeployError as error:
    return _failed(FAILED, error)
  except EndpointError as error:
    return _failed(ENDPOINT, error)
  except (ValueError, ModuleNotFoundError) as error:
    return _failed(CONFIG, error)
  except (OSError, RuntimeError) as error:
    if closed_pipe.is_of_output(error):
      raise
    return _failed(FAILED, error)
  except KeyboardInterrupt:
    return _failed(INTERRUPTED, "interrupted; the same command goes on")


def _failed(code: int, why: object) -> int:
  print(f"atlas: {' '.join(str(why).split()) or type(why).__name__}", file=sys.stderr)
  return code


def split(words: list[str]) -> tuple[list[str], dict[str, str]]:
  """Parts --config.NAME=VALUE from all other words."""
  rest, overrides = [], {}
  for word in words:
    found = re.fullmatch(r"--config\.([^=]+)=(.*)", word, re.DOTALL)
    if found is None:
      rest.append(word)
    else:
      overrides[found[1]] = found[2]
  return rest, overrides


def parser() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  top = argparse.ArgumentParser(prog="atlas", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = top.add_subparsers(dest="command", required=True)
  init = _command(commands, "init", "make the store, or bring it up to date", cli_store.init,
                  with_config=False)
  init.add_argument("--database-url", metavar="URL", help="sqlite:///PATH, postgresql://... or env:NAME")
  init.add_argument("--embedded", action="store_true", help="a PostgreSQL server of its own, on loopback")
  _add_run(commands)
  _add_search(commands)
  resume = _command(commands, "resume", "take up sessions whose process is gone", cli_run.resume)
  resume.add_argument("--json", action="store_true", help="a line of JSON for each")
  stats = _command(commands, "stats", "what the sessions come to, by version", cli_store.stats)
  stats.add_argument("--json", action="store_true", help="as one JSON object")
  _command(commands, "doctor", "check all that a run needs", cli_store.doctor, reads=False)
  configs = commands.add_parser("config", help="look at configs").add_subparsers(dest="config_command",
                                                                                 required=True)
  _command(configs, "validate", "check a config, and print all its fields", cli_store.validate, reads=False)
  _command(commands, "train", "train on approved sessions; takes the flags of run_offline_pipeline.py",
           None, with_config=False).set_defaults(run=_train)
  _add_deploy(commands)
  rounds = _command(commands, "loop", "run, review, export, train, deploy and evaluate, round by round",
                    loop.command)
  rounds.add_argument("--rounds", type=int, required=True, metavar="K", help="how many")
  learn = _command(commands, "learn", "take lessons from sessions that were reviewed", cli_store.learn)
  learn.add_argument("ids", type=int, nargs="+", metavar="ID", help="of sessions, approved or quarantined")
  forget = _command(commands, "forget", "delete sessions with all that is theirs", cli_store.forget)
  whose = forget.add_mutually_exclusive_group(required=True)
  whose.add_argument("--session", metavar="KEY", help="of one session")
  whose.add_argument("--tenant", metavar="NAME", help="of all sessions and lessons of a tenant")
  _command(commands, "proxy", "record any agent that speaks to an endpoint", cli_proxy.command)
  env = commands.add_parser("env", help="find the agent of a folder").add_subparsers(dest="env_command",
                                                                                    required=True)
  for name, text, run in (("init", "look for agents, and write a config for one", cli_env.init),
                          ("list", "list what may be an agent", cli_env.listed),
                          ("verify", "say what has changed since init", cli_env.verify)):
    made = _command(env, name, text, run, with_config=False)
    made.add_argument("--path", default=".", metavar="FOLDER", help="that is looked through")
    if name == "init":
      made.add_argument("--trust", metavar="FILE.py:NAME", help="import this one, in a process of its "
                                                                "own, and take it")
  return top


def _add_run(commands) -> None:
  made = _command(commands, "run", "have tasks done", cli_run.command)
  what = made.add_mutually_exclusive_group(required=True)
  what.add_argument("--task", metavar="TEXT", help="one task")
  what.add_argument("--tasks", metavar="FILE.jsonl", help="one task a line: task, and ground_truth, tags, "
                                                          "metadata")
  made.add_argument("--lane", choices=LANES, help="of all sessions")
  made.add_argument("--concurrency", type=int, metavar="N", help="sessions at the same time")
  made.add_argument("--stream", action="store_true", help="print events, on the error stream")
  made.add_argument("--json", action="store_true", help="a line of JSON for each session")
  made.add_argument("--require-verified", action="store_true", help="end with 6 if an answer is not verified")
  made.add_argument("--dry-run", action="store_true", help="say what would be run and imported, and do "
                                                           "nothing")
  made.add_argument("--run", metavar="NAME", dest="run_again", help="do a task file that is done once more, "
                                                                    "under a name")


def _add_search(commands) -> None:
  made = _command(commands, "eval", "evaluate tasks, of each so many samples", cli_eval.command)
  made.add_argument("--tasks", metavar="FILE.jsonl", required=True, help="one task a line")
  made.add_argument("--out", metavar="FILE.jsonl", required=True, help="results, which a start that was cut "
                                                                       "off goes on from")
  made.add_argument("--samples", type=int, metavar="K", help="of each task; left out: config.eval.samples")
  made.add_argument("--concurrency", type=int, metavar="N", help="samples at the same time")
  made.add_argument("--retry-errors", action="store_true", help="ask again for samples that ended without an "
                                                                "answer")
  made.add_argument("--lane", choices=LANES, help="of all sessions")
  made.add_argument("--json", action="store_true", help="as one JSON object")
  made = _command(commands, "optimise", "search for a better system message, by reflection",
                  cli_optimise.command)
  made.add_argument("--tasks", metavar="FILE.jsonl", help="one task a line; left out: config.optimise.tasks, "
                                                          "else reviewed sessions")
  made.add_argument("--json", action="store_true", help="as one JSON object")


def _add_deploy(commands) -> None:
  made = _command(commands, "deploy", "put a checkpoint to work", cli_deploy.put_to_work)
  made.add_argument("path", metavar="PATH", help="rl_checkpoint/, or the folder that has it")
  made.add_argument("--as", dest="role", choices=("teacher", "student"), default="teacher")
  made.add_argument("--canary", type=float, metavar="SHARE", help="of the sessions, until it is promoted")
  made.add_argument("--url", help="of a server that serves it already, up to the version")
  made.add_argument("--model", help="its name there")
  back = _command(commands, "rollback", "go back to the version before", cli_deploy.rollback)
  back.add_argument("--as", dest="role", choices=("teacher", "student"), default="teacher")
  back.add_argument("--stop", action="store_true", help="end the servers of versions that no session gets "
                                                        "any "
                                                        "more, and change nothing else")


def _command(commands, name: str, text: str, run, *, with_config: bool = True, reads: bool = True):
  """Adds a command; `run` gets the flags, and the settings where `reads` is True."""
  made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
  if with_config:
    cli_config.add_flags(made)
  made.set_defaults(run=(lambda asked: run(asked, cli_config.settings_of(asked)))
                    if with_config and reads else run)
  return made


def _train(asked: argparse.Namespace) -> int:
  store = {name: value for name, value in asked.overrides.items() if name.startswith("store.")}
  if len(store) < len(asked.overrides):
    name = next(name for name in asked.overrides if name not in store)
    raise settings.ConfigError(f"--config.{name}: fields of the training are --override KEY=VALUE")
  return cli_deploy.train(asked.rest, settings.load(cli_config.DEFAULT, store))


if __name__ == "__main__":
  sys.exit(main())
