"""What the workdir of a language run keeps, so that the run is used without what it started from."""
import json
import pathlib
import shutil

from atlas_jax import config as configs
from atlas_jax.data import chats, published_tokenizer
from atlas_jax.interop import hf_export, hf_import, peft
from atlas_jax.rollout.start import ADAPTER, MODEL, PUBLISHED, TOKENIZER, Start, is_run

TEMPLATE = "template"  # Folder of a workdir that holds the chat template.
SHAPE = "shape.json"  # In a workdir: fields of the model, of a run that started from a run that drew its own.


def keep(config, start: Start, workdir) -> None:
  """Copies tokenizer, chat template and published config into a workdir; see `Recipe.keep`.

  Args:
    config: of the run.
    start: what it starts from.
    workdir: of the run.
  """
  workdir, data = pathlib.Path(workdir), config.data
  start.tokenizer.save(workdir / TOKENIZER)
  beside = start.folder if data.tokenizer == MODEL else _local(data.tokenizer)
  if beside is not None:
    published_tokenizer.travel(beside, workdir / TOKENIZER)
  if start.template is not None:
    template = start.folder if data.chat_template == MODEL else _local(data.chat_template)
    assert template is not None  # It was read from there.
    _copy(template, workdir / TEMPLATE, chats.FILES)
  if config.lora.path is not None:
    _copy(hf_import.find(config.lora.path), workdir / ADAPTER, (peft.CONFIG,))
  if start.folder is not None:
    _copy(start.folder, workdir / PUBLISHED, ("config.json", *hf_export.TRAVELS))
  elif config.model.path is not None:
    root, group = configs.load(root_of(config.model.path)), _group(config)
    (workdir / SHAPE).write_text(json.dumps(root[group].to_dict(), indent=2) + "\n", encoding="utf-8")


def root_of(workdir: str) -> str:
  """Gives the first of the runs that a run goes on from, one after another."""
  path = configs.load(workdir).model.path
  return root_of(path) if path is not None and is_run(path) else workdir


def _group(config) -> str:
  return "model" if config.model.kind == "memory" else "decoder"


def use(config, workdir) -> None:
  """Lets a run's config, still to be resolved, name the workdir's copies in place of the originals.

  Where adapters are trained, config.model.path stays what it was: the model beside them is read from there.
  """
  workdir = pathlib.Path(workdir)
  if (workdir / TOKENIZER).is_dir():
    config.data.tokenizer = str(workdir / TOKENIZER)
  if config.data.chat_template is not None and (workdir / TEMPLATE).is_dir():
    config.data.chat_template = str(workdir / TEMPLATE)
  if (workdir / ADAPTER).is_dir():
    config.lora.path = str(workdir / ADAPTER)
  path = config.model.path
  if path is None or config.lora.rank is not None or config.lora.path is not None or is_run(path):
    return
  if (workdir / PUBLISHED).is_dir():
    config.model.path = str(workdir / PUBLISHED)
  elif (workdir / SHAPE).is_file():
    fields, group = json.loads((workdir / SHAPE).read_text(encoding="utf-8")), _group(config)
    if group == "model":  # An update would join the options of two rules.
      config.model.memory.options = fields["memory"].pop("options")
    config[group].update(fields)
    config.model.path = None


def _local(name: str) -> pathlib.Path | None:
  """Gives the folder of a tokenizer that was loaded by name; None for bytes, which have none."""
  if name.startswith(hf_import.HUB):
    return hf_import.find(name)
  path = pathlib.Path(name).expanduser()
  return path.parent if path.is_file() else path if path.is_dir() else None


def _copy(source: pathlib.Path, target: pathlib.Path, names) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for name in names:
    if (source / name).is_file() and source.resolve() != target.resolve():
      shutil.copyfile(source / name, target / name)
