"""Reference numbers of post-training losses, read from tests/fixtures; see the docstrings of the tests."""

import functools
import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "fixtures"


@functools.lru_cache
def arrays(name: str) -> dict:
  """The arrays of one file, such as "post_training/sft", by name."""
  with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


@functools.lru_cache
def text(name: str) -> dict:
  """The content of one JSON file."""
  return json.loads((FOLDER / f"{name}.json").read_text())
