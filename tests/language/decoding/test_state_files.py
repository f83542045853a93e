"""Files of states: any dtype comes back bit for bit, and any damage is seen."""
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.files.damage import Damaged
from atlas_jax.language.decoding import state_files

ARRAYS = [np.arange(6, dtype=np.int32).reshape(2, 3), np.array(1.5, np.float32), np.zeros((0, 4), bool),
          np.asarray(jnp.array([1.5, -2, 3e-40], jnp.bfloat16)), np.array([2**32 - 1], np.uint32)]


def test_fields_and_arrays_come_back(tmp_path):
  state_files.write_state(tmp_path / "a", {"name": "x", "at": 3}, ARRAYS)
  fields, arrays = state_files.read_state(tmp_path / "a")
  assert fields == {"name": "x", "at": 3}
  for found, expected in zip(arrays, ARRAYS, strict=True):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()
  assert len(state_files.read_state(tmp_path / "a", most=1)[1]) == 1


def test_every_damage_is_seen(tmp_path):
  state_files.write_state(tmp_path / "a", {"name": "x"}, ARRAYS)
  whole = (tmp_path / "a").read_bytes()
  broken = [whole[:cut] for cut in (0, 10, len(whole) - 1)] + [whole + b"x", b"not this"]
  broken += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:] for at in range(0, len(whole), 7)]
  for number, content in enumerate(broken):
    file = tmp_path / f"b{number}"
    file.write_bytes(content)
    with pytest.raises(Damaged, match=f"b{number}:.*; "):
      state_files.read_state(file)
