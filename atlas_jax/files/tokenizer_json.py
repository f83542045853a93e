"""Reads a tokenizer.json as JSON and checks it: its ids can be read without a library of tokenizers."""
from typing import Any

from atlas_jax.files import json_file
from atlas_jax.files.damage import AGAIN, Damaged

MOST_IDS = 2**24  # A tokenizer has fewer.


def read(file, *, remedy: str = AGAIN) -> dict[str, Any]:
  """Reads a tokenizer.json; "added_tokens" is a list in it, also where the file has none.

  Raises:
    Damaged: naming the file and the token that has no whole "id" or no text "content".
    OSError: if there is no such file, or it may not be read.
  """
  content = json_file.read(file, remedy=remedy)
  content["added_tokens"] = added = content.get("added_tokens") or []
  if not isinstance(added, list):
    raise Damaged(file, f"its added_tokens are {type(added).__name__}, not a list", remedy)
  for token in added:
    known = isinstance(token, dict) and json_file.is_int(token.get("id"), 0, MOST_IDS - 1)
    if not known or not isinstance(token.get("content"), str) or not token["content"]:
      raise Damaged(file, f"its added_tokens have {str(token)[:60]}, which is no token with 'id' below "
                    f"{MOST_IDS} and 'content'", remedy)
  return content


def largest_id(file, content: dict[str, Any], *, remedy: str = AGAIN) -> int:
  """Returns the largest id of a tokenizer.json that `read` gave, -1 if it has none.

  Raises:
    Damaged: naming the file, if its vocabulary has ids that are none.
  """
  model = content.get("model", {})
  vocab = model.get("vocab", {}) if isinstance(model, dict) else None
  if not isinstance(vocab, dict | list):
    raise Damaged(file, "its model has no 'vocab' of tokens", remedy)
  # BPE and WordPiece map tokens to ids; Unigram lists [token, score], whose ids are their places.
  ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
  for one in ids:
    if not json_file.is_int(one, 0, MOST_IDS - 1):
      raise Damaged(file, f"its vocab has the id {str(one)[:60]}; ids are whole, below {MOST_IDS}", remedy)
  return max([*ids, *(token["id"] for token in content["added_tokens"])], default=-1)
