"""The script that prepares text makes a tokenizer and a cache that a source then uses."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.data.corpora import take, tiny_source, write_texts

ROOT = pathlib.Path(__file__).parents[2]


def prepare(*flags):
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  return subprocess.run([sys.executable, str(ROOT / "scripts" / "prepare_text.py"), *flags], text=True,
                        capture_output=True, env=environment)


def test_a_trained_tokenizer_and_its_cache_serve_a_source(tmp_path):
  pytest.importorskip("tokenizers")
  folder = write_texts(tmp_path / "texts", n=40)
  fields = dict(path=str(folder), tokenizer=str(tmp_path / "bpe"), cache_dir=str(tmp_path / "cache"))
  flags = [f"--{name}={value}" for name, value in fields.items()]
  done = prepare("--name=files", "--train_vocab_size=300", *flags)
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout)
  assert said["vocab_size"] == 300 and pathlib.Path(said["cache"]).is_dir()
  source = tiny_source(folder, **fields)
  assert source.manifest == said["manifest"]
  batch = take(source, 1)[0]
  assert batch["bytes_BT"].max() > 1 and batch["tokens_BT"].max() == source.tokenizer.doc_id == 299


def test_a_mistake_is_said_in_one_line(tmp_path):
  missing = tmp_path / "missing.txt"
  done = prepare("--name=files", f"--path={missing}")
  assert done.returncode == 1
  assert len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith(f"prepare_text: config.data.path='{missing}' is no file or folder; give one")
