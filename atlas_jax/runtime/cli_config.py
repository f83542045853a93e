"""The config that a command is given: of the runtime by --config, or of the Atlas SDK by --sdk-config."""
import argparse
import sys
from typing import Any

from atlas_jax.runtime import sdk_fields, settings
from atlas_jax.runtime.settings_groups import RuntimeSettings

DEFAULT = "configs/runtime.py:arithmetic"


def add_flags(made: argparse.ArgumentParser) -> None:
  """Adds the flags to a command."""
  which = made.add_mutually_exclusive_group()
  which.add_argument("--config", metavar="FILE:ARG", help=f"of the runtime; left out: {DEFAULT}")
  which.add_argument("--sdk-config", metavar="FILE.yaml", help="of the Atlas SDK, in place of --config")


def fill(asked: argparse.Namespace) -> None:
  """Puts the name of the config into `asked.config`, which runs of task files are named by."""
  if hasattr(asked, "sdk_config") and asked.config is None:
    asked.config = DEFAULT if asked.sdk_config is None else f"sdk:{asked.sdk_config}"


def config_of(asked: argparse.Namespace) -> Any:
  """Returns the config of the flags; keys of the SDK without effect are printed as warnings.

  Raises:
    ValueError: for a file, field or value that cannot be.
  """
  if asked.sdk_config is None:
    return settings.read(asked.config, asked.overrides)
  found = sdk_fields.read(asked.sdk_config, asked.overrides)
  for one in found.warnings:
    print(f"atlas: warning: {asked.sdk_config}: {one}", file=sys.stderr)
  return found.config


def settings_of(asked: argparse.Namespace) -> RuntimeSettings:
  """Returns the settings of the flags; see `config_of`."""
  return settings.of_config(config_of(asked))
