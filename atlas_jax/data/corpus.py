"""Corpora by name: each gives its documents, one after another, in a fixed order.

`python_stdlib` is on every machine and `files` reads what a path names. "hf:NAME" and every other name come
through the packages `datasets` and `tensorflow_datasets`, which are imported only when text is needed: a
corpus that was tokenised before is used without them and without a network.
"""
import glob
import hashlib
import json
import os
import pathlib
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from typing import NamedTuple

from atlas_jax.data import formats
from atlas_jax.data.formats import Document, Faults

# Installed packages would make the text of each machine another one.
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
OFFLINE = "without a network, config.data.name='python_stdlib' and 'files' always work"


class Corpus(NamedTuple):
  """A named collection of documents."""
  name: str
  manifest: dict                                   # JSON; what besides the text itself must not change
  identity: list                                   # JSON; changes whenever the documents may have changed
  size_bytes: int | None                           # of all text, roughly, if known beforehand
  documents: Callable[[Faults], Iterator[Document]]


def load(name: str, *, path=None, text_field: str = "text", limit_bytes: int | None = None,
         download: bool = False) -> Corpus:
  """Finds a corpus; nothing large is read before its `documents` are asked for.

  Args:
    name: "python_stdlib", "files", "hf:NAME" or "hf:NAME:SUBSET" (Hugging Face: a hub name or a folder), or
      a tensorflow_datasets name.
    path: for "files" files, folders or globs, comma-separated or a list; for a tensorflow_datasets name its
      data_dir.
    text_field: the field that holds the text, in JSON lines, Parquet and datasets.
    limit_bytes: stop with the document that passes so much text; None reads all.
    download: whether a dataset that is not on this machine may be fetched.

  Raises:
    ValueError: if `files` finds no file. What the datasets lack, their `documents` raise.
  """
  if name == "python_stdlib":
    corpus = _python_stdlib()
  elif name == "files":
    corpus = _files(path, text_field)
  elif name.startswith("hf:"):
    # The files of a dataset are not here before they are fetched: its name stands for its content. The lambda
    # puts off the import of `datasets` until text is needed, so that a cached corpus works without it.
    corpus = Corpus(name, {"corpus": name}, [name, text_field], None,
                    lambda faults: _hugging_face(name, faults, text_field, download))
  else:
    corpus = Corpus(name, {"corpus": name}, [name, str(path), text_field], None,
                    lambda faults: _tensorflow_datasets(name, faults, path, text_field, download))
  if limit_bytes is None:
    return corpus
  return corpus._replace(
      # In the identity too, or a limited corpus would take the cache of the whole one.
      manifest={**corpus.manifest, "limit_bytes": limit_bytes}, identity=[*corpus.identity, limit_bytes],
      documents=lambda faults: _limited(corpus.documents(faults), limit_bytes))


def _limited(documents, limit_bytes: int):
  size = 0
  for document in documents:
    # The document that passes the limit is given whole: a cut could fall into a character.
    yield document
    size += len(document.text)
    if size >= limit_bytes:
      return


def _python_stdlib() -> Corpus:
  """The standard library of the running interpreter, without its tests (PSF-2.0, 10 to 12 MB)."""
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  inside = []
  for folder, folders, names in os.walk(root):
    # Installed packages are twenty times the library: folders that are left out are not even listed.
    folders[:] = [name for name in folders if name not in NOT_LIBRARY]
    inside += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
  # A walk's order is that of the file system. Sorted, every host finds the same documents in the same order.
  files = sorted((file.relative_to(root).as_posix(), file) for file in inside)

  def documents(faults: Faults):
    for name, file in files:
      text = file.read_bytes()
      faults.files += 1
      if text:  # An empty __init__.py is no fault here.
        yield Document(name, text)

  manifest = {"corpus": "python_stdlib", "python": platform.python_version()}
  return Corpus("python_stdlib", manifest, _fingerprint(files), _size(files), documents)


def _size(files: list[tuple[str, pathlib.Path]]) -> int:
  return sum(file.stat().st_size for _, file in files)


def _fingerprint(files: list[tuple[str, pathlib.Path]]) -> list:
  """Returns what changes when one of the files does: a hash of names, places, sizes and times."""
  # Sizes and times in place of contents: a start must not read a terabyte to learn that nothing changed. A
  # file that was copied with a new time is tokenised again, which costs time and changes nothing.
  stats = [[name, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for name, file in files]
  return [hashlib.sha256(json.dumps(stats).encode()).hexdigest()]


def _files(path, text_field: str) -> Corpus:
  """The files that paths, folders or globs name, sorted by their name below the path."""
  if not path:
    raise ValueError("config.data.name='files' needs config.data.path: a file, a folder, or a glob such as "
                     "'texts/*.txt'")
  # A comma may be part of a file's name: it divides paths only where no such file exists.
  if isinstance(path, str) and not pathlib.Path(path).expanduser().exists():
    path = [part.strip() for part in path.split(",")]
  paths = [path] if isinstance(path, str | pathlib.Path) else list(path)
  found = [(local, file) for one in paths for local, file in _expand(str(one), prefix=len(paths) > 1)]
  files = sorted(dict.fromkeys(found))

  def documents(faults: Faults):
    for name, file in files:
      yield from formats.read(name, file, faults, text_field=text_field)

  # How much text compressed files hold is not known beforehand; `store.load` then goes through its cache.
  packed = any(file.suffix in (".gz", ".zst", ".parquet") for _, file in files)
  size = None if packed else _size(files)
  return Corpus("files", {"corpus": "files"}, [*_fingerprint(files), text_field], size, documents)


def _expand(pattern: str, *, prefix: bool) -> list[tuple[str, pathlib.Path]]:
  """Returns (name, file) of what a pattern matches.

  Names are relative, so moving a folder changes no split.
  """
  path = pathlib.Path(pattern).expanduser()
  # Names are counted from the last folder before the first wildcard. They decide the split, see
  # `store.split_place`, so they must not have the place of the folder on this machine in them.
  wild = next((n for n, part in enumerate(path.parts) if re.search(r"[*?\[]", part)), None)
  if path.is_dir():
    base = path
    files = [file for file in path.rglob("*") if file.name.endswith(formats.SUFFIXES)]
    fault = f"holds no file that ends in {', '.join(formats.SUFFIXES)}; for others give a glob"
  elif path.is_file() or wild is None:
    base = path.parent
    files = [path]
    fault = "is no file or folder; give one, or a glob in quotes"
  else:
    base = pathlib.Path(*path.parts[:wild])
    fault = "matches no file"
    files = [pathlib.Path(file) for file in glob.glob(str(path), recursive=True)]
  files = [file for file in files if file.is_file()]
  if not files:
    raise ValueError(f"config.data.path={pattern!r} {fault}")
  # With several paths two files may have one name below theirs: the folder's own name tells them apart.
  head = f"{base.resolve().name}/" if prefix else ""
  return [(head + file.relative_to(base).as_posix(), file) for file in files]


def _missing(name: str) -> ValueError:
  return ValueError(f"config.data.name={name!r} is not on this machine; fetch it with "
                    f"--config.data.download=True or scripts/prepare_text.py over a network; {OFFLINE}")


def _tensorflow_datasets(name: str, faults: Faults, path, text_field: str, download: bool):
  others = f"config.data.name={name!r} is none of 'python_stdlib', 'files' and 'hf:NAME'"
  tfds = formats.need("tensorflow_datasets", f"{others}; a tensorflow_datasets name")
  try:
    builder = tfds.builder(name, data_dir=path, file_format="array_record")
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise ValueError(f"{others}, and tensorflow_datasets knows no such name") from error
  if not builder.is_prepared():  # Asking first: an attempt to fetch without a network takes minutes to fail.
    if not download:
      raise _missing(name)
    builder.download_and_prepare(file_format="array_record")
  rows = builder.as_data_source(split="train")
  return _rows(name, rows, faults, text_field)


def _hugging_face(name: str, faults: Faults, text_field: str, download: bool) -> Iterator[Document]:
  dataset, _, subset = name[3:].partition(":")
  if not download and not pathlib.Path(dataset).exists():
    raise _missing(name)
  datasets = formats.need("datasets", f"config.data.name={name!r}")
  try:
    # Streamed: documents are read once, in order, and tokenised at once, so a copy
    # in Arrow would be of no use.
    rows = datasets.load_dataset(dataset, subset or None, split="train", streaming=True)
    yield from _rows(name, rows, faults, text_field)
  except (OSError, ValueError) as error:  # Absent, offline and forbidden are all of these.
    line = (str(error).splitlines() or [""])[0]
    what = f"{type(error).__name__}: {line}"
    raise ValueError(f"config.data.name={name!r} cannot be read: {what}; {OFFLINE}") from error


def _rows(name: str, rows, faults: Faults, text_field: str) -> Iterator[Document]:
  """Yields the documents of a dataset, named by their row."""
  faults.files += 1
  for number, row in enumerate(rows, start=1):
    if text_field not in row:
      raise ValueError(f"config.data.text_field={text_field!r} is no field of {name}; "
                       f"it has {', '.join(row)}")
    text = formats.checked_text(f"{name}:{number}", row[text_field], faults)
    if text is not None:
      yield Document(f"{name}:{number}", text)
