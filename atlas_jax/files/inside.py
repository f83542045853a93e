"""Names of files that a file gives: they stay in the folder they are meant for."""
import pathlib

from atlas_jax.files.damage import Damaged


def path(folder, name: object, *, named_by, remedy: str = "name files of that folder alone") -> pathlib.Path:
  """Returns the path of a file that an index or archive names.

  Links inside the folder are followed, since the cache of the Hugging Face hub is made of them; a name that
  leaves the folder by itself is refused.

  Args:
    folder: that it must lie in.
    name: as the index has it.
    named_by: the index, for the message.
    remedy: what to do.

  Raises:
    Damaged: for a name that is absolute, goes up, or is none.
  """
  if not isinstance(name, str) or not is_inside(name):
    shown = repr(name)
    raise Damaged(named_by, f"names the file {shown[:80]}, which is not in {folder}", remedy)
  return pathlib.Path(folder) / name


def is_inside(name: str) -> bool:
  """Returns whether a name is a relative path that never goes up, on any system."""
  # Written on any system, read on any: a backslash divides folders on Windows, and "C:" names a drive. An
  # empty part is a leading slash, or a doubled one.
  parts = name.replace("\\", "/").split("/")
  return bool(name) and "\0" not in name and ":" not in parts[0] and not {"", ".", ".."} & set(parts)
