"""Tokenizers: text to ids and back, how many bytes each id stands for, and a folder that travels with a run.

Every tokenizer here is a table from id to bytes plus an encoder. `doc_id` is DOC, the only special that
training uses: it opens and closes every document.
"""
import codecs
import hashlib
import importlib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from atlas_jax.files import inside, inventory, json_file, tokenizer_json, write
from atlas_jax.files.damage import Damaged, as_damaged

MARKER = "atlas_tokenizer.json"
REMEDY = "fetch or save it again, or name another with config.data.tokenizer"
SPREAD = 64  # Ids must be below so many times the number of tokens.
FORMS = ("'byte', a tokenizer.json, a SentencePiece .model, a folder holding either, "
         "or 'hf:NAME' for one on the Hugging Face hub")


class Tokenizer(Protocol):
  """The interface of a tokenizer."""
  vocab_size: int      # ids are below it, DOC included
  doc_id: int          # the separator DOC
  fingerprint: str     # equal for tokenizers that encode alike

  def encode(self, text: str | bytes) -> np.ndarray: ...
  def encode_many(self, texts: list[bytes]) -> list[np.ndarray]: ...
  def decode(self, ids: Iterable[int]) -> str: ...
  def decode_bytes(self, ids: Iterable[int]) -> bytes: ...
  def byte_lengths(self) -> np.ndarray: ...
  def save(self, folder) -> None: ...


class ByteTokenizer:
  """The 256 byte values and DOC = 256; any text round-trips, broken UTF-8 included."""
  vocab_size = 257
  doc_id = 256
  fingerprint = "byte"

  def encode(self, text: str | bytes):
    """Returns the bytes of the text, int32; a str is taken as UTF-8."""
    data = text.encode() if isinstance(text, str) else bytes(text)
    return np.frombuffer(data, np.uint8).astype(np.int32)

  def encode_many(self, texts: list[bytes]):
    """Returns one array per text; uint8, without a copy."""
    # Not int32, as of one text: a corpus would take four times its size before it is written.
    return [np.frombuffer(text, np.uint8) for text in texts]

  def decode_bytes(self, ids) -> bytes:
    """Returns the bytes that the ids stand for; DOC stands for none."""
    ids = np.asarray(ids).reshape(-1)
    return ids[ids < 256].astype(np.uint8).tobytes()

  def decode(self, ids) -> str:
    """Returns the text; bytes that are not UTF-8 become the replacement character."""
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def byte_lengths(self):
    """Returns how many bytes each id stands for, int32."""
    return np.r_[np.ones(256, np.int32), np.zeros(1, np.int32)]

  def save(self, folder) -> None:
    """Writes what `load(folder)` needs."""
    _write_marker(folder, kind="byte", file=None)


class TableTokenizer:
  """A tokenizer read from a file: its own encoder, and a table of the bytes of every id."""

  def __init__(self, encode_texts, token_bytes: list[bytes], doc_id: int | None, file: pathlib.Path,
               kind: str):
    """Wraps an encoder.

    Args:
      encode_texts: list of str -> list of id sequences, specials never added nor recognised in the text.
      token_bytes: bytes of each id, b"" for specials.
      doc_id: an id that ends documents, or None to append one.
      file: what it was read from, copied by `save`.
      kind: "hf" or "sentencepiece".
    """
    self._encode_texts = encode_texts
    self._file = file
    self._kind = kind
    self.doc_id = len(token_bytes) if doc_id is None else doc_id
    self._appended = doc_id is None
    self._bytes = token_bytes + [b""] if self._appended else list(token_bytes)
    self._bytes[self.doc_id] = b""  # Also where the file has it as an ordinary token.
    self.vocab_size = len(self._bytes)
    # The file's bytes, not its path: caches and runs stay valid when a tokenizer is moved, and are refused
    # when it changes under the same name.
    self.fingerprint = f"{kind}:{hashlib.sha256(file.read_bytes()).hexdigest()}:{self.doc_id}"

  def encode(self, text: str | bytes):
    """Returns the ids of the text, int32; broken UTF-8 is replaced first."""
    return self.encode_many([text])[0]

  def encode_many(self, texts: list):
    """Returns one int32 array per text, in parallel where the encoder can."""
    # Libraries take str alone. A document that is not UTF-8 keeps its other characters.
    strings = [text if isinstance(text, str) else text.decode("utf-8", errors="replace") for text in texts]
    return [np.asarray(ids, np.int32) for ids in self._encode_texts(strings)]

  def decode_bytes(self, ids) -> bytes:
    """Returns the bytes that the ids stand for; specials, and ids beyond the table, stand for none."""
    return b"".join(self._bytes[int(i)] for i in np.asarray(ids).reshape(-1) if int(i) < len(self._bytes))

  def decode(self, ids) -> str:
    """Returns the text; bytes that are not UTF-8 become the replacement character."""
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def byte_lengths(self):
    """Returns how many bytes each id stands for, int32."""
    return np.array([len(token) for token in self._bytes], np.int32)

  def save(self, folder) -> None:
    """Copies the file and writes what `load(folder)` needs."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    target = pathlib.Path(folder) / ("tokenizer.json" if self._kind == "hf" else "tokenizer.model")
    write.copy(self._file, target)
    _write_marker(folder, kind=self._kind, file=target.name, doc_id=None if self._appended else self.doc_id)


class StreamDecoder:
  """Turns ids that come a few at a time into text, never cutting a character in two."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    # An id may stand for a part of a character. The decoder keeps open bytes until the rest comes; decoding
    # id by id would show a replacement character for each part.
    self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

  def push(self, ids) -> str:
    """Returns the text that is complete after these ids; "" while a character is still open."""
    return self._decoder.decode(self._tokenizer.decode_bytes(ids))

  def flush(self) -> str:
    """Returns what is left at the end, a replacement character if a character stayed open."""
    return self._decoder.decode(b"", final=True)


def load(name: str) -> Tokenizer:
  """Loads a tokenizer by name or path.

  Args:
    name: 'byte'; a tokenizer.json; a SentencePiece .model; a folder with either (as `save` or transformers
      write it); or 'hf:NAME', fetched from the hub or its cache.

  Raises:
    ValueError: if nothing is there, or what is there is no tokenizer.
    ModuleNotFoundError: if the extra it needs is missing, with its name.
  """
  if name == "byte":
    return ByteTokenizer()
  if name.startswith("hf:"):
    return _from_folder(_download(name[3:]))
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    return _from_folder(path)
  if path.is_file():
    return _from_file(path, _eos_of(path.parent) if path.suffix == ".json" else None)
  raise ValueError(f"config.data.tokenizer={name!r} is neither a file nor a folder; it must be {FORMS}. "
                   "scripts/prepare_text.py --train_vocab_size=32000 --tokenizer=FOLDER trains one")


def train_bpe(texts: Iterable[bytes], *, vocab_size: int, folder) -> Tokenizer:
  """Trains a byte-level BPE, writes it to `folder` as tokenizer.json, and loads it.

  Args:
    texts: UTF-8 texts to learn merges from.
    vocab_size: of the tokenizer that is given back, DOC included; at least 257.
    folder: made if absent.

  Raises:
    ValueError: if the texts are too few for so many tokens.
  """
  if vocab_size < ByteTokenizer.vocab_size:
    raise ValueError(f"vocab_size={vocab_size} must be at least 257: every byte, and the separator")
  tokenizers = _need("tokenizers")
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size - 1, show_progress=False,  # DOC is appended when the file is read.
      # All 256 bytes from the start, or a text with a byte that the training texts
      # lacked could not be encoded.
      initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  model.train_from_iterator((text.decode("utf-8", errors="replace") for text in texts), trainer)
  if model.get_vocab_size() != vocab_size - 1:
    raise ValueError(f"vocab_size={vocab_size} needs more text: this has merges for "
                     f"{model.get_vocab_size() + 1}; lower it to that, or give more text")
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  write.whole(pathlib.Path(folder) / "tokenizer.json", model.to_str(pretty=True))
  return _from_folder(pathlib.Path(folder))


def _from_folder(folder: pathlib.Path) -> Tokenizer:
  inventory.check_sealed(folder, remedy=REMEDY)
  if (folder / MARKER).is_file():
    saved = marker_of(folder)
    if saved["kind"] == "byte":
      return ByteTokenizer()
    return _from_file(folder / saved["file"], saved["doc_id"])
  for file in [folder / "tokenizer.json", *sorted(folder.glob("*.model"))]:
    if file.is_file():
      return _from_file(file, _eos_of(folder) if file.suffix == ".json" else None)
  raise ValueError(f"config.data.tokenizer={str(folder)!r} holds neither {MARKER}, tokenizer.json nor a "
                   f"*.model; it must be {FORMS}")


def _from_file(file: pathlib.Path, doc: int | str | None) -> Tokenizer:
  return _read_hf(file, doc) if file.suffix == ".json" else _read_sentencepiece(file, doc)


def _read_hf(file: pathlib.Path, doc: int | str | None) -> TableTokenizer:
  tokenizers = _need("tokenizers")
  content = tokenizer_json.read(file, remedy=REMEDY)
  added = {token["id"]: token for token in content["added_tokens"]}
  with as_damaged(file, "is not a tokenizer.json", REMEDY):
    model = tokenizers.Tokenizer.from_file(str(file))
    # A tokenizer.json may hold both settings of its model's training, and would cut documents at
    # 512 ids or fill short ones up.
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True  # "<|endoftext|>" written in a document is text, not the end of it.
    vocab = {i: token for token, i in model.get_vocab(with_added_tokens=True).items()}
  _check_ids(file, vocab)
  byte_level = "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
  table = []
  # Ids may have gaps, as where reserved tokens were removed: those stand for no bytes. `SPREAD` in
  # `_check_ids` bounds how long this list can become by one absurd id.
  for i in range(max(vocab) + 1):
    if i in added:
      table.append(b"" if added[i].get("special") else added[i]["content"].encode())
    else:
      table.append(_token_bytes(vocab.get(i, ""), byte_level))
  doc_id = model.token_to_id(doc) if isinstance(doc, str) else doc
  _check_doc(file, doc_id, len(table))

  def encode(texts):
    with as_damaged(file, "cannot encode a text", REMEDY):
      # No bos or eos of the file's post-processor: DOC is put by packing, once a document.
      return [one.ids for one in model.encode_batch(texts, add_special_tokens=False)]

  return TableTokenizer(encode, table, doc_id, file, "hf")


def _check_ids(file, vocab: dict[int, str]) -> None:
  if not vocab:
    raise Damaged(file, "has no tokens", REMEDY)
  if max(vocab) >= tokenizer_json.MOST_IDS or max(vocab) > SPREAD * len(vocab):
    raise Damaged(file, f"has {len(vocab)} tokens with ids up to {max(vocab)}; they count from 0", REMEDY)


def _check_doc(file, doc_id, n_ids: int) -> None:
  if doc_id is not None and not json_file.is_int(doc_id, 0, n_ids - 1):
    raise Damaged(file, f"its token of documents is {doc_id!r}, and it has ids 0 to {n_ids - 1}", REMEDY)


def _read_sentencepiece(file: pathlib.Path, doc: int | str | None) -> TableTokenizer:
  sentencepiece = _need("sentencepiece")
  what = "is not a SentencePiece model"
  if not file.stat().st_size:
    raise Damaged(file, f"{what} (0 bytes)", REMEDY)
  with as_damaged(file, what, REMEDY):
    model = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    table = [b"" if model.is_control(i) or model.is_unused(i) else _token_bytes(model.id_to_piece(i), False)
             for i in range(model.get_piece_size())]
    eos = model.eos_id() if model.eos_id() >= 0 else None
  assert not isinstance(doc, str)
  doc_id = eos if doc is None else doc
  _check_doc(file, doc_id, len(table))

  def encode(texts):
    with as_damaged(file, "cannot encode a text", REMEDY):
      return model.encode(texts)

  return TableTokenizer(encode, table, doc_id, file, "sentencepiece")


def _byte_of_char() -> dict[str, int]:
  """Returns the byte behind each printable character of byte-level BPE vocabularies (those of GPT-2)."""
  # The table of GPT-2: bytes that print stay themselves, all others take characters from U+0100 on, in rising
  # order, since its merges stand in a text file with white space between them.
  kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  rest = [byte for byte in range(256) if byte not in kept]
  return {**{chr(byte): byte for byte in kept}, **{chr(256 + n): byte for n, byte in enumerate(rest)}}


BYTE_OF_CHAR = _byte_of_char()


def _token_bytes(token: str, byte_level: bool) -> bytes:
  # A byte-level vocabulary may also have entries in other characters than the
  # table; they are text as it stands.
  if byte_level and all(char in BYTE_OF_CHAR for char in token):
    return bytes(BYTE_OF_CHAR[char] for char in token)
  if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
    return bytes([int(token[3:5], 16)])
  return token.replace("\u2581", " ").encode()


def _eos_of(folder: pathlib.Path) -> str | None:
  """Returns the eos token that the files beside a tokenizer.json name, if any."""
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    if (folder / name).is_file():
      eos = json_file.read(folder / name, remedy=REMEDY).get("eos_token")
      eos = eos.get("content") if isinstance(eos, dict) else eos
      if eos is not None and not isinstance(eos, str):
        raise Damaged(folder / name, f"eos_token={str(eos)[:60]} must be the text of a token", REMEDY)
      if eos:
        return eos
  return None


def marker_of(folder) -> dict:
  """Reads the MARKER of a folder that `Tokenizer.save` wrote: kind, file and doc_id, checked.

  Raises:
    Damaged: naming the file.
  """
  marker = pathlib.Path(folder) / MARKER
  saved = json_file.read(marker, remedy=REMEDY)
  kinds = ("byte", "hf", "sentencepiece")
  json_file.field(marker, saved, "kind", lambda kind: kind in kinds, f"one of {', '.join(kinds)}")
  if saved["kind"] != "byte":
    file = inside.path(folder, saved.get("file"), named_by=marker, remedy=REMEDY)
    if not file.is_file():
      raise Damaged(file, f"is missing, and {MARKER} names it", REMEDY)
    json_file.field(marker, saved, "doc_id", lambda one: one is None or json_file.is_int(one),
                    "null, or the id of the token of documents", remedy=REMEDY)
  return saved


def _write_marker(folder, **fields) -> None:
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  write.json(pathlib.Path(folder) / MARKER, fields)


def _need(module: str):
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"config.data.tokenizer needs the package {module}: "
                              f"pip install 'atlas_jax[hf]', or set config.data.tokenizer='byte'") from error


def _download(name: str) -> pathlib.Path:
  hub = _need("huggingface_hub")
  files = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "*.model"]
  try:
    return pathlib.Path(hub.snapshot_download(name, allow_patterns=files))
  except Exception as error:  # Offline, absent and forbidden all end here, each with a type of its own.
    raise ValueError(f"config.data.tokenizer='hf:{name}' cannot be fetched ({type(error).__name__}); without "
                     f"a network give the path of a local tokenizer, or 'byte'") from error
