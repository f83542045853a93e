"""Tokenises a corpus ahead of training, with a tokenizer that exists or one trained on the spot.

  python scripts/prepare_text.py --name=lm1b --tokenizer=tokenizers/bpe32k
  python scripts/prepare_text.py --name=python_stdlib --train_vocab_size=32000 --tokenizer=tokenizers/std32k

Prints, as one JSON object, the folder of the cache, the corpus's manifest, and the config fields that use it.
"""
import json
import pathlib
import sys

from absl import app, flags

from atlas_jax.data import corpus, formats, store, tokenizer
from atlas_jax.files import closed_pipe

flags.DEFINE_string("name", "python_stdlib", "as config.data.name")
flags.DEFINE_multi_string("path", [], "as config.data.path; may be given several times")
flags.DEFINE_string("tokenizer", "byte", "as config.data.tokenizer; the folder to write if one is trained")
flags.DEFINE_integer("train_vocab_size", None, "train a byte-level BPE of so many ids first", lower_bound=257)
flags.DEFINE_integer("train_bytes", 256 * 2**20, "how much text to train it on")
flags.DEFINE_float("held_out_frac", 0.05, "fraction of documents, as config.data.held_out_frac, held out")
flags.DEFINE_string("text_field", "text", "as config.data.text_field")
flags.DEFINE_integer("limit_bytes", None, "as config.data.limit_bytes")
flags.DEFINE_float("bad_input_frac", 0.01, "as config.data.bad_input_frac")
flags.DEFINE_string("cache_dir", None, "as config.data.cache_dir")
flags.DEFINE_bool("download", True, "fetch what is not on this machine")


def train(found: corpus.Corpus, args) -> tokenizer.Tokenizer:
  """Trains the tokenizer on the documents that are not held out, until there is enough text."""
  def texts():
    faults, size = formats.Faults(args.bad_input_frac), 0
    for document in found.documents(faults):
      if store.split_place(document.name) >= args.held_out_frac:
        yield document.text
        size += len(document.text)
      if size >= args.train_bytes:
        return

  if (pathlib.Path(args.tokenizer) / "tokenizer.json").exists():
    raise ValueError(f"--tokenizer={args.tokenizer} holds a tokenizer already; name another folder, or leave "
                     f"out --train_vocab_size to use it")
  return tokenizer.train_bpe(texts(), vocab_size=args.train_vocab_size, folder=args.tokenizer)


def prepare(args) -> dict:
  """Does what the flags ask and says what came of it."""
  path = args.path[0] if len(args.path) == 1 else args.path or None
  chosen = dict(text_field=args.text_field, limit_bytes=args.limit_bytes)
  found = corpus.load(args.name, path=path, download=args.download, **chosen)
  if args.train_vocab_size is not None and args.tokenizer == "byte":
    raise ValueError("--train_vocab_size needs --tokenizer=FOLDER, where the new tokenizer is written")
  coder = train(found, args) if args.train_vocab_size is not None else tokenizer.load(args.tokenizer)
  loaded = store.load(found, coder, cache_dir=args.cache_dir, bad_input_frac=args.bad_input_frac)
  folder = store.cache_folder(found, coder, args.cache_dir)
  fields = dict(name=args.name, path=path, tokenizer=args.tokenizer, cache_dir=args.cache_dir, **chosen)
  return {
    "cache": str(folder) if folder.exists() else None,  # Small corpora of bytes are read anew each time.
    "vocab_size": coder.vocab_size,
    "bytes_per_token": loaded.manifest["bytes"] / max(1, loaded.manifest["tokens"]),
    "manifest": loaded.manifest,
    "flags": [f"--config.data.{name}={value}" for name, value in fields.items() if value is not None],
  }


def main(argv):
  """Prints the outcome, or one line on what is wrong."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  try:
    print(json.dumps(prepare(flags.FLAGS), indent=2))
  except (ValueError, ModuleNotFoundError) as error:
    sys.exit(f"prepare_text: {error}")


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main)
