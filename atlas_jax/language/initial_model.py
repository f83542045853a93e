"""The initial model of tuning: its tokenizer and chat template, and where its parameters lie.

A start is drawn from the seed, read from the folder of a pretrained model, or from the workdir of a run;
adapters are drawn, or read from a folder in PEFT's format.
"""
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax.data import chats
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.files import json_file, write
from atlas_jax.files.damage import Damaged, as_damaged
from atlas_jax.language import handed_over
from atlas_jax.language.pretrained import adapters, hf_config, hf_import
from atlas_jax.models import language as languages
from atlas_jax.models import lm, lora, placement
from atlas_jax.models.decoder import Decoder
from atlas_jax.parallel import hosts
from atlas_jax.workdir import (
  ADAPTER,
  BASE_STEP,
  PRETRAINED,
  SHAPE,
  TEMPLATE,
  TOKENIZER,
)

MODEL = "model"  # As the name of a tokenizer or template: that of config.model.path.
# Fields that say how a model is run, not what it is.
DECODER_HOW = ("dtype", "remat", "scan_unroll", "attention_block_tokens")
MEMORY_HOW = ("dtype", "remat", "scan_unroll")


class InitialModel(NamedTuple):
  """The model of a run that tunes."""

  language: languages.LanguageModel
  tokenizer: Any
  template: chats.Template | None  # None: prompts are texts
  folder: pathlib.Path | None  # of the pretrained model, with its config and tokenizer
  end_tokens: tuple[int, ...]  # ids that end a completion
  adapted: bool  # whether adapters are trained in place of the model
  read_base: Callable | None  # mesh -> parameters without adapters; None: they are drawn
  read_adapters: Callable | None = None  # mesh -> adapters; None: they are drawn
  warning: str | None = None  # logged when what is trained is read

  @property
  def backward_frac(self) -> float:
    """The fraction of a forward pass that has a backward pass; see `recipes.Accounting`.

    Beside adapters no gradient of weights is computed: the backward pass costs as much as the forward one.
    """
    return 0.5 if self.adapted else 1.0

  def init(self, rng) -> tuple[Any, dict]:
    """Draws (what is trained, the rest by name); "base" is the model beside its adapters."""
    params = self.language.init(rng)
    if not self.adapted:
      return params, {}
    trained, base = lora.split(params)
    return trained, {"base": base}

  @property
  def reads_trained(self) -> bool:
    """Returns whether what is trained is read from files, in place of being drawn."""
    return (self.read_adapters if self.adapted else self.read_base) is not None

  def read(self, mesh: Mesh, fresh: bool) -> tuple[Any, dict]:
    """Reads (what is trained, the rest by name) from files; None and {} stand for what is drawn.

    Args:
      mesh: where they are put.
      fresh: whether what is trained is wanted.
    """
    # Checkpoints hold what is trained. So a run that goes on needs no file for a whole model, but it needs
    # the base of its adapters at every start.
    if self.read_base is None or not (fresh or self.adapted):
      return None, {}
    if fresh and self.warning is not None and hosts.is_main():
      logging.warning("%s", self.warning)
    base = self.read_base(mesh)
    if not self.adapted:
      return base, {}
    return self.read_adapters(mesh) if fresh and self.read_adapters else None, {"base": base}


def merge_frozen(params, frozen):
  """Returns the parameters of the whole model: joined with frozen["base"], where adapters are trained."""
  return lora.join(params, frozen["base"]) if frozen and "base" in frozen else params


def load_initial_model(config, workdir=None) -> InitialModel:
  """Finds what a config starts from.

  Args:
    config: resolved.
    workdir: of the run itself, where it is opened to use it; its copies of tokenizer and pretrained config
      stand in for the originals.

  Raises:
    ValueError: if there is no model at config.model.path, it is of another kind, or its tokenizer has ids for
      which it has no embedding.
  """
  kept = None if workdir is None else pathlib.Path(workdir)
  path = config.model.path
  options = adapters.options_of(config.lora)
  if path is None:
    adapters.refuse_without_model(config.lora)
    language = drawn(config)
    folder = None
    read = None
  elif is_run(path):
    language, read = _of_run(config, pathlib.Path(path), options)
    folder = pathlib.Path(path) / PRETRAINED
  else:
    # The run's own copy of the config, where it has one: what the model is must not change with the original.
    folder = kept / PRETRAINED if kept and (kept / PRETRAINED).is_dir() else find(path)
    language, read = _published(config, path, folder, options)
  folder = folder if folder is not None and folder.is_dir() else None
  tokenizer = _tokenizer(config, folder)
  # More ids than embeddings cannot be read. Fewer are usual: pretrained models round their vocabularies up.
  if tokenizer.vocab_size > language.vocab_size:
    group = "decoder" if config.model.kind == "decoder" else "model"
    raise ValueError(f"config.data.tokenizer={config.data.tokenizer!r} has {tokenizer.vocab_size} ids, the "
                     f"model only {language.vocab_size}; take the tokenizer that belongs to the model, or "
                     f"for a new one set config.{group}.vocab_size={tokenizer.vocab_size}")
  warning = _check_tokenizer(config, tokenizer, folder)
  template = _template(config, folder)
  return InitialModel(language, tokenizer, template, folder, _end_tokens(tokenizer, template, folder),
                      options is not None, read,
                      None if config.lora.path is None else adapters.reader_of(config, language.module),
                      warning)


def find(path: str) -> pathlib.Path:
  """Returns the folder of a pretrained model.

  Raises:
    ValueError: if there is none.
  """
  if not path.startswith(hf_import.HUB) and not pathlib.Path(path).expanduser().is_dir():
    raise ValueError(f"config.model.path={path!r} is no folder; give that of a pretrained model, hf:NAME, or "
                     "the workdir of a run, which must have been trained before")
  return hf_import.find(path)


def is_run(path: str) -> bool:
  """Returns whether a path is the workdir of a run, and not the folder of a pretrained model."""
  return handed_over.is_run(path)


def drawn(config) -> languages.LanguageModel:
  """Returns the model of a config whose parameters are drawn; needs no tokenizer."""
  options = adapters.options_of(config.lora)
  if config.model.kind == "memory":
    _refuse_adapters(options)
    return languages.of_memory(lm.build(config.model.to_dict()))
  return languages.from_decoder(Decoder(**config.decoder, lora=options))


def _refuse_adapters(options) -> None:
  if options is not None:
    raise ValueError(f"config.lora.rank={options['rank']} puts adapters into a decoder, and this is a memory "
                     "model; set config.lora.rank=None and config.lora.path=None")


def _published(config, path: str, folder: pathlib.Path, options):
  if config.model.kind != "decoder":
    raise ValueError(f"config.model.path={path!r} is a pretrained model, and config.model.kind="
                     f"{config.model.kind!r}; set config.model.kind='decoder'")
  # What the model is stands in its files; how it is computed, in this config.
  how = {name: config.decoder[name] for name in DECODER_HOW}
  _, fields = hf_config.read(folder / "config.json")
  language = languages.from_decoder(hf_import.build(fields, **how, lora=options))
  # In float32 whatever is stored: small updates of bfloat16 parameters would be rounded away.
  return language, lambda mesh: hf_import.load(path, mesh=mesh, param_dtype="float32", **how).params


def _of_run(config, workdir: pathlib.Path, options):
  """Returns the model of another run and the reader of its newest parameters, its adapters merged."""
  other = configs.load(workdir)
  if other.model.kind != config.model.kind:
    raise ValueError(f"config.model.path={str(workdir)!r} is a run of another kind of model; set "
                     f"config.model.kind={other.model.kind!r} in place of {config.model.kind!r}")
  start = load_initial_model(_with_copies(other, workdir), workdir)
  module = start.language.module
  if config.model.kind == "memory":
    _refuse_adapters(options)
    language = languages.of_memory(module.copy(**{name: config.model[name] for name in MEMORY_HOW}))
  else:
    how = {name: config.decoder[name] for name in DECODER_HOW}
    language = languages.from_decoder(module.copy(**how, lora=options))

  def read(mesh):
    # Shapes alone: nothing that the other run started from is drawn.
    shapes, frozen = jax.eval_shape(start.init, jax.random.key(0))
    saver = handed_over.open_run(workdir, other.checkpoint)
    try:
      abstract = placement.abstract(mesh, shapes)
      params, _ = saver.restore_params(abstract, field=states.field_used(other))
    finally:
      saver.close()
    if not start.adapted:
      return params
    base = start.read_base(mesh) if start.read_base else _drawn_base(start, other, mesh, frozen)
    # The adapters of that run become part of the weights; this run may train others beside them.
    return lora.merge(lora.join(params, base), module.lora)

  return language, read


def _with_copies(config, workdir: pathlib.Path):
  """Returns a run's config with its own copies of what it started from, and no chat template.

  It is used to read parameters, which need no template.
  """
  changed = configs.unfrozen(config)
  changed.data.chat_template = None
  use_copies(changed, workdir)
  return configs.resolve(changed)


def group_of(config) -> str:
  """Names the group of a config that has the fields of its model."""
  return "model" if config.model.kind == "memory" else "decoder"


def use_copies(config, workdir) -> None:
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
  # Adapters mean nothing beside another model than the one they were trained with.
  if config.lora.rank is not None or config.lora.path is not None:
    check_base(config, workdir)
    return
  if path is None:
    return
  if (workdir / PRETRAINED).is_dir():
    config.model.path = str(workdir / PRETRAINED)
  elif (workdir / SHAPE).is_file():
    fields = json_file.read_sealed(workdir / SHAPE)
    group = group_of(config)
    own = MEMORY_HOW if group == "model" else DECODER_HOW
    with as_damaged(workdir / SHAPE, "does not hold the fields of the run's model"):
      if group == "model":  # An update would join the options of two rules.
        config.model.memory.options = fields["memory"].pop("options")
      config[group].update({name: value for name, value in fields.items() if name not in own})
    config.model.path = None


def is_lost(path: str | None) -> bool:
  """Returns whether a path, not a name on the hub, names what is not there."""
  return (path is not None and not path.startswith(hf_import.HUB)
          and not pathlib.Path(path).expanduser().exists())


def check_base(config, workdir) -> None:
  """Refuses a run whose adapters, or reference, belong to a model that is gone, or was trained further since.

  Raises:
    ValueError: names both runs and steps.
  """
  file = pathlib.Path(workdir) / BASE_STEP
  path = config.model.path
  if is_lost(path):
    raise ValueError(f"config.model.path={path!r} is no folder any more, and the adapters or the reference "
                     f"of the run in {workdir} belong to what was there; put it back, or a link to it")
  check_step(path, file, "config.model.path")


def note_step(path: str | None, file: pathlib.Path) -> None:
  """Writes the newest step of the run at a path, so that a run that reads it at every start can compare."""
  if path is not None and is_run(path):
    step = handed_over.open_run(path).latest_step()
    write.json(file, json_file.sealed({"step": step}), indent=None)


def check_step(path: str | None, file: pathlib.Path, field: str) -> None:
  """Refuses to go on where the run at a path, which `field` names, has another step than was noted.

  Raises:
    ValueError: names both runs and steps.
  """
  if path is None or not is_run(path) or not file.is_file():
    return
  then = json_file.field(file, json_file.read_sealed(file), "step",
                         lambda step: step is None or json_file.is_int(step), "the step of a checkpoint")
  now = handed_over.open_run(path).latest_step()
  if now != then:
    raise ValueError(f"{field}={path!r} is at step {now}, and was at {then} when the run in {file.parent} "
                     "began, which belongs to what it was; move its later checkpoints away, or start anew in "
                     "another workdir")


def _drawn_base(start: InitialModel, config, mesh, shapes):
  rng = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # As `state.first` draws.
  where = placement.shardings(mesh, shapes["base"])
  return jax.jit(lambda: start.init(rng)[1]["base"], out_shardings=where)()


def _tokenizer(config, folder: pathlib.Path | None) -> tokenizers.Tokenizer:
  name = config.data.tokenizer
  path = config.model.path
  if name != MODEL:
    return tokenizers.load(name)
  if path is None:
    raise ValueError(f"config.data.tokenizer={name!r} is that of config.model.path, which is None; set "
                     "--config.model.path=FOLDER, hf:NAME or the workdir of a run")
  try:
    return tokenizers.load(str(pathlib.Path(path) / TOKENIZER if is_run(path) else folder))
  except ValueError as error:
    raise ValueError(f"config.model.path={path!r} has no tokenizer that can be read; name one with "
                     f"--config.data.tokenizer=FOLDER ({error})") from error


def _check_tokenizer(config, tokenizer, folder: pathlib.Path | None) -> str | None:
  """Refuses another tokenizer than that of the run started from; warns of another than a pretrained model's.

  Raises:
    ValueError: names both.
  """
  name = config.data.tokenizer
  path = config.model.path
  if path is None or name == MODEL:
    return None
  also = f"its ids mean other texts to the model; set --config.data.tokenizer={MODEL}"
  if is_run(path):
    own = _own_tokenizer(pathlib.Path(path))
    if own.fingerprint != tokenizer.fingerprint:
      raise ValueError(f"config.data.tokenizer={name!r} is not the tokenizer of the run in config.model.path="
                       f"{path!r} ({tokenizer.vocab_size} and {own.vocab_size} ids); {also}")
    return None
  file = None if folder is None else folder / "tokenizer.json"
  if file is None or not file.is_file():
    return None
  # The fingerprint of a tokenizer.json has the checksum of the file in it.
  if hashlib.sha256(file.read_bytes()).hexdigest() in tokenizer.fingerprint:
    return None
  return f"config.data.tokenizer={name} is another tokenizer than that of config.model.path={path}: {also}"


def _own_tokenizer(workdir: pathlib.Path) -> tokenizers.Tokenizer:
  """Opens the tokenizer of a run: its copy, or where it keeps none the one that its config names."""
  copied = workdir / TOKENIZER
  return tokenizers.load(str(copied) if copied.is_dir() else configs.load(workdir).data.tokenizer)


def template_folder(config, folder: pathlib.Path | None) -> pathlib.Path:
  """Returns where config.data.chat_template="model" is read; `folder` is the pretrained model's, if any."""
  path = config.model.path
  # A run keeps the template that it was tuned with; a model that was drawn for it has no other.
  if path is not None and is_run(path) and (pathlib.Path(path) / TEMPLATE).is_dir():
    return pathlib.Path(path) / TEMPLATE
  if folder is None:
    raise ValueError("config.data.chat_template='model' is that of a pretrained model, and "
                     f"config.model.path={path!r} is none; give a tokenizer's folder, or None")
  return folder


def _template(config, folder: pathlib.Path | None) -> chats.Template | None:
  name = config.data.chat_template
  if name == MODEL:
    name = str(template_folder(config, folder))
  return None if name is None else chats.load(name, values=config.data.template_values)


def _end_tokens(tokenizer, template, folder: pathlib.Path | None) -> tuple[int, ...]:
  """Returns the ids that end a completion: the tokenizer's, the template's, and those that files name."""
  # Chat models end a turn with another id than a document, and files may name more; were one left out,
  # completions would run on behind it to their longest length.
  turn_end = None if template is None else template.turn_end(tokenizer)
  found = [int(one) for one in (tokenizer.doc_id, turn_end) if one is not None]
  for file in ("generation_config.json", "config.json"):
    if folder is not None and (folder / file).is_file():
      ids = hf_config.read_json(folder / file).get("eos_token_id")
      ids = [one for one in (ids if isinstance(ids, list) else [ids]) if one is not None]
      if not all(json_file.is_int(one) for one in ids):
        raise Damaged(folder / file, f"eos_token_id={str(ids)[:60]} must be an id or a list of ids")
      found += ids
  return tuple(dict.fromkeys(found))
