"""Tokenised corpora: built once, in memory when small, else in a cache of memory-mapped arrays.

A cache entry is a folder named by what decides its content; it appears whole or not at all, so several
processes may build it at once. Its manifest has the checksum of every file and of itself, compared at every
start; a damaged entry is moved aside and made anew.
"""
import array
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import formats
from atlas_jax.data.corpus import Corpus
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.files import arrays, inventory, json_file, write
from atlas_jax.files.damage import Damaged

MANIFEST = "manifest.json"
PARTS = ("lengths", "split", "names")
REMEDY = "delete that folder, it is then made again"
IN_MEMORY_BYTES = 64 * 2**20  # Byte-level text up to this size needs no cache: it is read in a second.
BATCH_BYTES = 8 * 2**20       # Text handed to the tokenizer at once.
FORMAT = 2  # Of an entry; part of its key, so that another version makes its own.


class TokenStore(NamedTuple):
  """All documents of a corpus as token ids, in the corpus's order."""
  ids: np.ndarray        # uint8, uint16 or uint32
  starts: np.ndarray     # int64 per document
  lengths: np.ndarray    # int64 per document
  split: np.ndarray      # float64 per document in [0, 1), drawn from its name
  names: np.ndarray      # uint8, the names in UTF-8, each ends in a newline; see `document_name`
  manifest: dict         # corpus and tokenizer identity, files, documents, bytes, sha256 of the text, tokens


def split_place(name: str) -> float:
  """Returns a document's place in [0, 1) from its name: those below `held_out_frac` are held out.

  Twentieths come first: at 0.05 the held-out documents are those whose hash is a multiple of 20.
  """
  # By name alone: a document stays on its side when others are added, removed or reordered, and every host
  # comes to the same split without talking to the others.
  rest, twentieth = divmod(int(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest(), 16), 20)
  return (twentieth + rest % 2**40 / 2**40) / 20


def load(corpus: Corpus, tokenizer: Tokenizer, *, cache_dir: str | None, bad_input_frac: float) -> TokenStore:
  """Returns the tokenised corpus, from the cache if it is there, else by reading all of it.

  Args:
    corpus: what to read.
    tokenizer: turns each document into ids.
    cache_dir: where caches live; None is the user's cache folder.
    bad_input_frac: fraction of documents or files that may be unreadable.

  Raises:
    ValueError: if too much is unreadable, or the corpus has no text.
  """
  # A size that is unknown counts as large and goes through the cache.
  if tokenizer.fingerprint == "byte" and (corpus.size_bytes or IN_MEMORY_BYTES) < IN_MEMORY_BYTES:
    # The map that `_build` returns keeps the pages after the file is closed and its name is gone.
    with tempfile.TemporaryFile() as scratch:
      return _build(corpus, tokenizer, scratch, bad_input_frac)
  folder = cache_folder(corpus, tokenizer, cache_dir)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with open(f"{folder}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Processes of one machine build once; others at worst build the same.
    if folder.exists():
      try:
        return _open_cache(folder)
      except Damaged as error:
        aside = _set_aside(folder)
        logging.warning("%s: %s; the cache is made anew, and the damaged one kept as %s", error.file,
                        error.why, aside)
    _build_cache(corpus, tokenizer, folder, bad_input_frac)
    return _open_cache(folder)


def cache_folder(corpus: Corpus, tokenizer: Tokenizer, cache_dir: str | None) -> pathlib.Path:
  """Returns the folder that holds, or will hold, the tokenised corpus."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  root = pathlib.Path(cache_dir or f"{home}/atlas_jax/tokens").expanduser()
  key = json.dumps([FORMAT, corpus.name, corpus.identity, tokenizer.fingerprint], sort_keys=True)
  plain = "".join(char if char.isalnum() else "_" for char in corpus.name)
  return root / f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def document_name(store: TokenStore, index: int) -> str:
  """Returns the name of a document: a file, or file:line."""
  return document_names(store, [index])[0]


def document_names(store: TokenStore, indices: Sequence[int]) -> list[str]:
  """Returns the names of documents; of many at once, since each call reads over all names of the store."""
  ends = np.flatnonzero(store.names == ord("\n"))
  return [bytes(store.names[ends[index - 1] + 1 if index else 0:ends[index]]).decode() for index in indices]


def _build(corpus: Corpus, tokenizer: Tokenizer, file, bad_input_frac: float) -> TokenStore:
  """Tokenises all documents into `file`, an open binary file, and maps it; Python objects stay few."""
  # DOC is never stored: packing puts it between documents. So bytes fit 8 bits, though there are 257 ids.
  n_ordinary = 256 if tokenizer.fingerprint == "byte" else tokenizer.vocab_size
  dtype = np.min_scalar_type(n_ordinary - 1)
  faults = formats.Faults(bad_input_frac)
  digest = hashlib.sha256()
  # Flat buffers in place of lists: a corpus may have tens of millions of documents, each of which would be
  # some hundred bytes of Python objects.
  names = bytearray()
  n_tokens = array.array("q")
  split = array.array("d")
  n_bytes = 0
  for texts in _batches(corpus.documents(faults)):
    for name, text in texts:
      names += name.replace("\n", " ").encode(errors="surrogateescape") + b"\n"
      split.append(split_place(name))
      # With the lengths in front: else a letter could move from a name to its text
      # and leave the digest as it was.
      digest.update(b"%d %d " % (len(name), len(text)) + name.encode(errors="surrogateescape") + text)
      n_bytes += len(text)
    for ids in tokenizer.encode_many([text for _, text in texts]):
      # The dtype below has no room for others: they would wrap around without a word.
      if len(ids) and not 0 <= ids.min() <= ids.max() < n_ordinary:
        raise ValueError(f"config.data.tokenizer gives ids from {ids.min()} to {ids.max()}, which are not in "
                         f"its own 0..{n_ordinary - 1}; choose another tokenizer")
      n_tokens.append(len(ids))
      file.write(ids.astype(dtype, copy=False).tobytes())
    faults.documents += len(texts)
  faults.check()
  if not n_bytes:
    raise ValueError(f"config.data.name={corpus.name!r} has no text in its {faults.files} files")
  file.flush()
  lengths = np.array(n_tokens, np.int64)
  manifest = {
      **corpus.manifest, "tokenizer": tokenizer.fingerprint, "files": faults.files, "documents": len(lengths),
      "bytes": n_bytes, "tokens": int(lengths.sum()), "skipped": faults.skipped, "sha256": digest.hexdigest()}
  return TokenStore(ids=np.memmap(file, dtype, "r"), starts=np.cumsum(lengths) - lengths, lengths=lengths,
                    split=np.array(split), names=np.frombuffer(bytes(names), np.uint8), manifest=manifest)


def _batches(documents):
  """Yields lists of documents of some megabytes each."""
  batch = []
  size = 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size > BATCH_BYTES:
      yield batch
      batch = []
      size = 0
  yield batch


def _build_cache(corpus, tokenizer, folder: pathlib.Path, bad_input_frac: float) -> None:
  """Builds beside `folder` and renames, so that a cache is whole or absent."""
  logging.info("tokenising %s into %s", corpus.name, folder)
  # Beside the folder, since a rename is one step only within a file system.
  scratch = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
  try:
    with open(scratch / "ids.bin", "wb+") as file:
      store = _build(corpus, tokenizer, file, bad_input_frac)
    # The manifest comes last: it has the checksums of all others.
    for name in PARTS:
      write.whole(scratch / f"{name}.npy", arrays.npy_bytes(getattr(store, name)))
    files = inventory.take(scratch, ("ids.bin", *(f"{name}.npy" for name in PARTS)))
    manifest = {**store.manifest, "format": FORMAT, "dtype": store.ids.dtype.name, "checksums": files}
    write.json(scratch / MANIFEST, json_file.sealed(manifest))
    try:
      write.folder(scratch, folder)
    except OSError:
      if not folder.exists():  # Else another machine was first, with the same content.
        raise
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _set_aside(folder: pathlib.Path) -> pathlib.Path:
  """Moves a damaged entry away, in the place of one that was moved before."""
  aside = folder.with_name(f"{folder.name}.damaged")
  shutil.rmtree(aside, ignore_errors=True)
  with contextlib.suppress(FileNotFoundError):  # Another machine was first.
    folder.rename(aside)
  return aside


def _open_cache(folder: pathlib.Path) -> TokenStore:
  """Maps a cache entry, checking that its files are those its manifest describes.

  Raises:
    Damaged: naming the file whose contents are not what was written.
  """
  file = folder / MANIFEST
  if not file.is_file():
    raise Damaged(file, "is missing", REMEDY)
  manifest = json_file.read_sealed(file, remedy=REMEDY, needed=True)
  if manifest.pop("format", None) != FORMAT:
    raise Damaged(file, "is of another version of the program", REMEDY)
  inventory.check(folder, manifest.pop("checksums", None), named_by=file, remedy=REMEDY)
  dtype = np.dtype(manifest.pop("dtype"))
  lengths, split, names = (arrays.read(folder / f"{name}.npy", axes=1, remedy=REMEDY) for name in PARTS)
  # Checksums say that files are as written; this, that those that were written fit each other.
  n_bytes = (folder / "ids.bin").stat().st_size
  if len(lengths) != manifest["documents"] or n_bytes != lengths.sum() * dtype.itemsize:
    raise Damaged(folder / "ids.bin", f"has {n_bytes} bytes, its lengths say "
                  f"{lengths.sum() * dtype.itemsize}", REMEDY)
  ids = np.memmap(folder / "ids.bin", dtype, "r")
  return TokenStore(ids, np.cumsum(lengths) - lengths, lengths, split, names, manifest)
