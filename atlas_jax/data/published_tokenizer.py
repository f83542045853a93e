"""A run's tokenizer as the files that transformers reads, the mark of documents among its special tokens."""
import json
import pathlib
import shutil

from atlas_jax.data.tokenizer import BYTE_OF_CHAR, MARKER

DOC = "<|document|>"  # What the mark is called where a tokenizer has no name for it.
# What stands beside a tokenizer.json, chat templates among it.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
          "chat_template.jinja", "chat_template.json")
CLASS = "PreTrainedTokenizerFast"  # What transformers is to read a tokenizer.json with that names no class.


def travel(source, folder) -> None:
  """Copies what stands beside a tokenizer.json, such as its chat template; what is not there is left out."""
  source, folder = pathlib.Path(source), pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name in BESIDE:
    if (source / name).is_file() and source.resolve() != folder.resolve():
      shutil.copyfile(source / name, folder / name)


def write(folder, saved, *, max_tokens: int) -> None:
  """Writes the files of a tokenizer.

  Args:
    folder: made if absent.
    saved: folder that `Tokenizer.save` wrote, with what else travels in it.
    max_tokens: the longest text the model is meant for, for a tokenizer that has no config yet.
  """
  saved, folder = pathlib.Path(saved), pathlib.Path(folder)
  marker = json.loads((saved / MARKER).read_text(encoding="utf-8"))
  travel(saved, folder)
  if marker["kind"] == "sentencepiece":
    shutil.copyfile(saved / marker["file"], folder / marker["file"])
    return
  if marker["kind"] == "byte":
    content = byte_level()
  else:
    content = json.loads((saved / marker["file"]).read_text(encoding="utf-8"))
    if marker["doc_id"] is not None:  # One of its own.
      shutil.copyfile(saved / marker["file"], folder / "tokenizer.json")
      return
    content["added_tokens"] = [*(content.get("added_tokens") or ()), _special(_next_id(content))]
  _write_json(folder / "tokenizer.json", content)
  if not (folder / "tokenizer_config.json").is_file():
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": CLASS, "bos_token": DOC, "eos_token": DOC, "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False})


def byte_level() -> dict:
  """Gives the tokenizer.json of bytes: byte b has id b, and the mark of documents 256."""
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
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


def _next_id(content: dict) -> int:
  """Gives the id behind all others, which `Tokenizer` gives the mark."""
  added = [token["id"] for token in content.get("added_tokens") or ()]
  return max([*content["model"]["vocab"].values(), *added]) + 1


def _write_json(file: pathlib.Path, content: dict) -> None:
  file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
