"""A run's tokenizer as the files that transformers reads, the mark of documents among its special tokens."""
import pathlib

from atlas_jax.data.tokenizer import BYTE_OF_CHAR, marker_of
from atlas_jax.files import inventory, tokenizer_json
from atlas_jax.files import write as write_file

DOC = "<|document|>"  # What the mark is called where a tokenizer has no name for it.
# What stands beside a tokenizer.json, chat templates among it.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
          "chat_template.jinja", "chat_template.json")
CLASS = "PreTrainedTokenizerFast"  # What transformers is to read a tokenizer.json with that names no class.


def copy(source, folder) -> None:
  """Copies what stands beside a tokenizer.json, such as its chat template; what is not there is left out."""
  source = pathlib.Path(source)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name in BESIDE:
    if (source / name).is_file():
      write_file.copy(source / name, folder / name)


def write(folder, saved, *, max_tokens: int) -> None:
  """Writes the files of a tokenizer.

  Args:
    folder: made if absent.
    saved: folder that `Tokenizer.save` wrote, with the other files that are copied into it.
    max_tokens: the longest text the model is meant for, for a tokenizer that has no config yet.
  """
  saved = pathlib.Path(saved)
  folder = pathlib.Path(folder)
  inventory.check_sealed(saved)
  marker = marker_of(saved)
  copy(saved, folder)
  if marker["kind"] == "sentencepiece":
    write_file.copy(saved / marker["file"], folder / marker["file"])
    return
  if marker["kind"] == "byte":
    content = byte_level()
  else:
    content = tokenizer_json.read(saved / marker["file"])
    if marker["doc_id"] is not None:  # One of its own.
      write_file.copy(saved / marker["file"], folder / "tokenizer.json")
      return
    # The mark has the id behind the largest, as `data.tokenizer` gives it to texts.
    content["added_tokens"] = [*content["added_tokens"], _special(
        tokenizer_json.largest_id(saved / marker["file"], content) + 1)]
  write_file.json(folder / "tokenizer.json", content)
  # A config that was copied with the tokenizer stays.
  if not (folder / "tokenizer_config.json").is_file():
    write_file.json(folder / "tokenizer_config.json", {
        "tokenizer_class": CLASS, "bos_token": DOC, "eos_token": DOC, "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False})


def byte_level() -> dict:
  """Returns the tokenizer.json of bytes: byte b has id b, and the mark of documents 256."""
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
  # By byte value: an id is its byte.
  vocab = dict(sorted(BYTE_OF_CHAR.items(), key=lambda item: item[1]))
  return {
      "version": "1.0", "truncation": None, "padding": None, "added_tokens": [_special(256)],
      "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
      "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                "merges": []}}


def _special(number: int) -> dict:
  return {"id": number, "content": DOC, "single_word": False, "lstrip": False, "rstrip": False,
          "normalized": False, "special": True}
