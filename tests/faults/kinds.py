"""One whole small file of every kind that is read, and what reading it gives.

A kind is a function that writes the file, and what else its reader needs, into an empty folder, and gives its
path and a function that reads it. What reading gives can be compared with ==.
"""

import functools
import gzip
import json
import pathlib
import shutil
import types

import jax
import numpy as np

from atlas_jax import checkpoint
from atlas_jax import config as configs
from atlas_jax.data import chats, corpus, formats, records, store, tokenizer
from atlas_jax.evals import baseline
from atlas_jax.files import arrays, inventory, json_file, write
from atlas_jax.language import handed_over
from atlas_jax.language.pretrained import hf_config, hf_import, peft, tensor_files
from atlas_jax.models import placement
from atlas_jax.monitor import writer
from atlas_jax.parallel import mesh as meshes
from atlas_jax.puzzles import boards, initial_model, sets, torch_file
from atlas_jax.puzzles import files as built_files
from atlas_jax.puzzles.arc import plan as arc_plan
from atlas_jax.puzzles.arc import tasks, voting
from atlas_jax.rollout import table
from atlas_jax.workdir import BASE_STEP, COMPLETIONS, PUZZLES, RESET, WEIGHTS, WEIGHTS_RECORD
from tests import puzzle_runs, torch_files

MODELS = pathlib.Path(__file__).parents[1] / "fixtures" / "hf_models"
TEXTS = ["first text", "zweiter \u2028 größer", "third\x85 one", "a\u2029b"]
CHAT = [{"role": "user", "content": "Wie?"}, {"role": "assistant", "content": "So \u2028 ist es."}]
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim }}"
            "{{ '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # fmt: skip
SPECIALS = [{"id": 257 + n, "content": name, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False} for n, name in enumerate(("<|im_start|>", "<|im_end|>"))]
TASK = {"train": [{"input": [[0, 1], [2, 3]], "output": [[1]]}], "test": [{"input": [[4, 5]]}]}


def plain(value):
  """Turns arrays into what can be compared."""
  if hasattr(value, "tobytes"):
    array = np.asarray(value)
    return str(array.dtype), array.shape, array.tobytes()
  if isinstance(value, dict):
    return {name: plain(one) for name, one in value.items()}
  return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def rows(folder):
  """JSON lines of rows."""
  file = folder / "rows.jsonl"
  write.whole(file, "".join(json.dumps({"text": one, "n": 1}, ensure_ascii=False) + "\n" for one in TEXTS))
  return file, lambda: [tuple(one) for one in records.read(str(file))]


def packed_rows(folder):
  """JSON lines in gzip."""
  file = folder / "rows.jsonl.gz"
  write.whole(file, gzip.compress(rows(folder)[0].read_bytes(), mtime=0))
  return file, lambda: [tuple(one) for one in records.read(str(file))]


def row_list(folder):
  """A JSON list of rows."""
  file = folder / "rows.json"
  write.json(file, [{"messages": CHAT, "n": 1.5}, {"messages": CHAT[:1]}])
  return file, lambda: [tuple(one) for one in records.read(str(file))]


def documents(folder):
  """JSON lines of documents."""
  file = rows(folder)[0]

  def read():
    faults = formats.Faults(0.0)
    found = [tuple(one) for one in formats.read("rows.jsonl", file, faults, text_field="text")]
    faults.check()
    return found
  return file, read


def parquet_rows(folder):
  """Parquet with checksums of its pages."""
  import pyarrow
  from pyarrow import parquet
  file = folder / "rows.parquet"
  parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3, 4]}), file, write_page_checksum=True)
  return file, lambda: [tuple(one) for one in records.read(str(file))]


def metrics(folder):
  """A run's metrics."""
  file = folder / "metrics.jsonl"
  write.whole(file, "".join(json.dumps({"step": n, "train/loss_nats": 1 / n}) + "\n" for n in range(1, 6)))
  return file, lambda: writer.drop_rows_after(file, 4)


def completions(folder):
  """A run's completions."""
  table.CompletionLog(folder).write(1, [{"prompt": one, "reward": 1.0} for one in TEXTS])
  file = folder / COMPLETIONS / "00000000.jsonl"

  def read():
    table.CompletionLog(folder).write(2, [{"prompt": "new"}])
    return file.read_bytes()
  return file, read


def arc_task(folder):
  """An ARC task."""
  file = folder / "task.json"
  write.json(file, TASK)
  return file, lambda: plain(tasks.task_of("task", tasks.load_json(file), str(file)))


def _built(name, folder):
  puzzle_runs.write_built(folder / "set")
  file = folder / "set" / "train" / name

  def read():
    train = built_files.load(folder / "set").train
    return plain([train.group_starts, train.puzzle_starts, train.puzzle_ids,
                  train.read(np.arange(train.n_examples))])
  return file, read


def sealed_built(folder):
  """An array of a built data set with checksums."""
  file, read = _built("all__inputs.npy", folder)
  inventory.seal(file.parent)
  return file, read


def made_boards(folder):
  """Boards in their cache."""
  make = lambda: boards.of_lists([[1, 2], [2, 1]], [[2, 2], [1, 1]], [3, 4], [0, 1], 2)
  boards.cached(folder, {"puzzles": "toy"}, make)
  file = next(folder.glob("*.npz"))
  return file, lambda: plain(boards.cached(folder, {"puzzles": "toy"}, make))


def plan(folder):
  """A plan of augmentations."""
  found = arc_plan.BuildPlan(*(np.arange(3) for _ in arc_plan.BuildPlan._fields))._replace(
    kinds=np.arange(2), permutations=np.arange(2), group_starts=np.arange(3))
  arc_plan._save(found, folder / "plan.npz")
  return folder / "plan.npz", lambda: plain(arc_plan._open(folder / "plan.npz"))


def reset(folder):
  """The vectors that a run's latents start from."""
  file = folder / RESET
  write.whole(file, arrays.npz_bytes(**{"0": np.ones(4, np.float32), "1": np.arange(4, dtype=np.float32)},
                                     same_puzzles=True))
  return file, lambda: plain(initial_model._read_reset(folder))


def puzzle_record(folder):
  """What the puzzles of a run are."""
  write.json(folder / PUZZLES, json_file.sealed({"n_ids": 5, "kind": "arc", "train": "ab"}))
  return folder / PUZZLES, lambda: sets.record_of(folder)


def run_config(folder):
  """The config of a run."""
  configs.save(configs.resolve(configs.default()), folder)
  return folder / "config.json", lambda: configs.load(folder).to_dict()


def step_note(folder):
  """The step of the run that another belongs to."""
  file = folder / BASE_STEP
  write.json(file, json_file.sealed({"step": 5}), indent=None)
  return file, lambda: json_file.read_sealed(file)


def _tokenizer_folder(folder):
  shutil.copytree(MODELS / "byte_tokenizer", folder / "tokenizer")
  file = folder / "tokenizer" / "tokenizer.json"
  content = json.loads(file.read_text())
  known = {token["content"] for token in content.get("added_tokens") or ()}
  if "<|im_start|>" not in known:
    content["added_tokens"] = [*(content.get("added_tokens") or ()), *SPECIALS]
    file.write_text(json.dumps(content))
  return file


def hf_tokenizer(folder):
  """A tokenizer.json."""
  file = _tokenizer_folder(folder)

  def read():
    found = tokenizer.load(str(file.parent))
    return plain([found.encode("Größe \u2028"), found.byte_lengths(), found.doc_id])
  return file, read


def tokenizer_ids(folder):
  """A tokenizer.json, of which the largest id is looked up."""
  file = _tokenizer_folder(folder)
  return file, lambda: hf_import.check_tokenizer(file.parent, 2**24)


def tokenizer_settings(folder):
  """A tokenizer_config.json."""
  file = _tokenizer_folder(folder).with_name("tokenizer_config.json")
  write.json(file, {"eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE, "bos_token": "<s>"})

  def read():
    coder = tokenizer.load(str(file.parent))
    return plain([coder.doc_id, chats.load(str(file.parent)).render(CHAT)])
  return file, read


def kept_tokenizer(folder):
  """A run's copy of a tokenizer, with checksums."""
  coder = tokenizer.load(str(_tokenizer_folder(folder).parent))
  coder.save(folder / "kept")
  inventory.seal(folder / "kept")

  def read():
    found = tokenizer.load(str(folder / "kept"))
    return plain([found.encode("Größe \u2028"), found.doc_id])
  return folder / "kept" / "tokenizer.json", read


def kept_marker(folder):
  """The marker of a run's copy of a tokenizer."""
  _, read = kept_tokenizer(folder)
  return folder / "kept" / tokenizer.MARKER, read


def kept_sums(folder):
  """The checksums of a run's copy of a tokenizer."""
  _, read = kept_tokenizer(folder)
  return folder / "kept" / inventory.SUMS, read


def sentencepiece_model(folder):
  """A SentencePiece model."""
  import sentencepiece
  text = folder / "text.txt"
  text.write_text("\n".join(f"the quick brown fox {n} jumps over a lazy dog" for n in range(50)))
  sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "spm"), vocab_size=40,
                                           minloglevel=2)
  file = folder / "spm.model"

  def read():
    found = tokenizer.load(str(file))
    return plain([found.encode("the fox"), found.byte_lengths(), found.doc_id])
  return file, read


def chat_template(folder):
  """A chat_template.jinja."""
  file = _tokenizer_folder(folder).with_name("chat_template.jinja")
  write.whole(file, TEMPLATE)
  coder = tokenizer.load(str(file.parent))

  def read():
    return plain(chats.load(str(file.parent)).prompt(CHAT[:1], coder))
  return file, read


def published_config(folder):
  """A published config.json."""
  shutil.copy(MODELS / "llama3_rope_tiny" / "config.json", folder)
  return folder / "config.json", lambda: hf_config.read(folder / "config.json")[1]


def adapter_config(folder):
  """An adapter_config.json."""
  file = folder / peft.CONFIG
  write.json(file, {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16,
                    "lora_dropout": 0.1, "bias": "none", "target_modules": ["q_proj", "v_proj"],
                    "base_model_name_or_path": "x"})
  return file, lambda: tuple(peft.describe(folder))


def _tensors(folder):
  opened = tensor_files.TensorFolder(folder)
  return plain({name: opened.read(name).astype(np.float32) for name in opened.file_of if opened.dtype(name)})


def safetensors_file(folder):
  """A safetensors file."""
  tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
  tensor_files.write_file(folder / "model.safetensors", tensors, {"format": "pt"})
  return folder / "model.safetensors", lambda: _tensors(folder)


def _handed_over(folder):
  tensors = {"params/a": np.arange(6, dtype=np.float32).reshape(2, 3), "params/b": np.ones(4, np.float32)}
  handed_over.write_file(folder, tensors, 7)
  shapes = {name.removeprefix("params/"): jax.ShapeDtypeStruct(one.shape, one.dtype)
            for name, one in tensors.items()}
  abstract = placement.abstract(meshes.make(devices=jax.devices()[:1]), shapes)
  return lambda: plain([*handed_over.open_run(folder).restore_params(abstract)])


def handed_weights(folder):
  """The parameters of a run that was handed over."""
  return folder / WEIGHTS, _handed_over(folder)


def handed_record(folder):
  """The record beside them."""
  return folder / WEIGHTS_RECORD, _handed_over(folder)


def shard_index(folder):
  """An index of shards."""
  file = folder / "model.safetensors.index.json"
  for name in ("one", "two"):
    tensor_files.write_file(folder / f"{name}.safetensors", {name: np.ones(3, np.float32)}, {"format": "pt"})
  write.json(file, {"weight_map": {"one": "one.safetensors", "two": "two.safetensors"}})
  return file, lambda: _tensors(folder)


def pytorch_file(folder):
  """A checkpoint of PyTorch."""
  file = folder / "step_7"
  torch_files.write(file, {"a": np.arange(6, dtype=np.float32), "b": np.ones(3, np.int64)})
  return file, lambda: plain(torch_file.read(file))


def _cached_tokens(name, folder):
  texts = folder / "texts"
  texts.mkdir()
  for number, text in enumerate(TEXTS * 5):
    (texts / f"{number}.txt").write_text(text)
  found = corpus.load("files", path=str(texts))._replace(size_bytes=None)
  coder = tokenizer.ByteTokenizer()
  store.load(found, coder, cache_dir=str(folder / "cache"), bad_input_frac=0.0)
  entry = store.cache_folder(found, coder, str(folder / "cache"))
  return entry / name, lambda: plain(list(store._open_cache(entry)))


def votes(folder):
  """Votes for answers."""
  found = voting.Votes()
  found.add("task", np.zeros((2, 2), int), np.ones((1, 2), int), 0.75)
  found.save(folder / "votes.json.gz")
  return folder / "votes.json.gz", lambda: list(voting.load(folder / "votes.json.gz")._items())


def figures(folder):
  """Recorded figures of a baseline."""
  file = folder / "baseline.json"
  content = baseline.Baseline(1.5, {"0-15": 2.5}, 1000, "command", "2026-01-01", {"steps": 5})._asdict()
  names = baseline.perplexity.bucket_names(baseline.perplexity.bucket_starts())
  write.json(file, {**content, "loss_nats_by_position": {names[0]: 2.5}})
  return file, lambda: tuple(baseline.read(str(file)))


def checkpoint_inventory(folder):
  """The list of a checkpoint's files with their checksums."""
  (folder / "7" / "state").mkdir(parents=True)
  write.whole(folder / "7" / "state" / "a", "numbers")
  file = folder / "7" / "files.json"
  write.json(file, checkpoint._inventory(folder / "7"))

  def read():
    damage = checkpoint._damage(folder / "7")
    if damage:
      raise ValueError(f"{file}: {damage}")
  return file, read


PLAIN = (rows, packed_rows, row_list, documents, parquet_rows, metrics, completions, arc_task, hf_tokenizer,
         tokenizer_ids, tokenizer_settings, sentencepiece_model, chat_template, published_config,
         adapter_config, safetensors_file, shard_index, figures,
         checkpoint_inventory)
# Of these a change is seen by a checksum: nothing else than what was written may be read.
SUMMED = (sealed_built, made_boards, plan, reset, puzzle_record, run_config, step_note, kept_tokenizer,
          kept_marker, kept_sums, pytorch_file, votes, handed_weights, handed_record)
_OF_BUILT = {f"built_{name.split('__')[-1].split('.')[0]}": functools.partial(_built, name)
             for name in ("dataset.json", "all__inputs.npy", "all__puzzle_indices.npy")}
_OF_CACHE = {f"tokens_{name.split('.')[0]}": functools.partial(_cached_tokens, name)
             for name in ("manifest.json", "ids.bin", "lengths.npy", "split.npy", "names.npy")}
ALL = {**{make.__name__: make for make in (*PLAIN, *SUMMED)}, **_OF_BUILT, **_OF_CACHE}
WITH_SUM = {*(make.__name__ for make in SUMMED), *_OF_CACHE}


def opened(name: str, folder: pathlib.Path) -> types.SimpleNamespace:
  """Writes the file of a kind; gives its path, bytes, reader, what that gives, and whether it has a sum."""
  folder.mkdir(parents=True)
  file, read = ALL[name](folder)
  content = file.read_bytes()
  wanted = read()
  file.write_bytes(content)  # Some readers write.
  return types.SimpleNamespace(file=file, content=content, read=read, wanted=wanted, summed=name in WITH_SUM)
