"""Builds tiny corpora on disk, and sources of them."""
import numpy as np

from atlas_jax.data import source

SMALL = dict(source="text", name="files", segment_len=16, batch_rows=4, held_out_frac=0.25, align_tokens=4,
             seed=3, threads=0)


def write_texts(folder, *, n: int = 24, seed: int = 0):
  """Writes n files of 6 to 90 random letters and returns the folder."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(n):
    letters = rng.integers(97, 123, size=rng.integers(6, 91)).astype(np.uint8)
    (folder / f"{i:03d}.txt").write_bytes(letters.tobytes())
  return folder


def tiny_source(folder, **fields):
  """A source of the files of a folder, four rows of 16 tokens."""
  return source.load(**{**SMALL, "path": str(folder), **fields})


def take(source_, n: int) -> list[dict]:
  """The next n batches."""
  return [source_.next(None) for _ in range(n)]


def assert_same(actual: dict, expected: dict):
  """Compares two batches, array by array and bit for bit."""
  assert actual.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
