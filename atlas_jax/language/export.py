"""A run's model as a pretrained one: safetensors, config and tokenizer that other programs load."""
import pathlib
import shutil

from absl import logging

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax import tree
from atlas_jax.data import chats
from atlas_jax.files import write
from atlas_jax.language import runs
from atlas_jax.language.initial_model import MODEL, InitialModel, is_run, load_initial_model
from atlas_jax.language.pretrained import hf_config, hf_export, hf_import, peft, tensor_files, tokenizer_files
from atlas_jax.language.pretrained.names import atlas
from atlas_jax.models.decoder import Decoder
from atlas_jax.parallel import hosts
from atlas_jax.workdir import PRETRAINED, TOKENIZER

DTYPES = ("float32", "bfloat16", "float16")


def check_target(folder) -> None:
  """Refuses a folder that holds anything: what another program loads must not be a mixture.

  Raises:
    ValueError: names the folder and what is in it.
  """
  path = pathlib.Path(folder)
  if path.exists() and not path.is_dir():
    raise ValueError(f"--to={folder} is a file; name a folder that does not exist yet")
  inside = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
  if inside:
    raise ValueError(f"--to={folder} holds {', '.join(inside[:3])}{' and more' if inside[3:] else ''}; name "
                     "a folder that does not exist yet, or is empty")


def run(config, workdir, folder, *, dtype: str | None = None, adapters: bool = False) -> dict:
  """Exports the newest parameters of a run, the moving average if it keeps one. Every process calls it.

  Args:
    config: of the run, see `runs.config_of`; resolved.
    workdir: of the run.
    folder: made; must not hold anything.
    dtype: of the weights; None: as the pretrained model that the run started from, else float32.
    adapters: write the adapters alone, as PEFT reads them, in place of the whole model with them merged.

  Returns:
    What was written: folder, step, weights ("params" or "ema" of the run), number of parameters,
    architecture, and the model whose layout of files was kept, None where it is ours.

  Raises:
    ValueError: if the folder holds something, or the model has no Hugging Face format.
    CheckpointError: see `runs.restore`.
  """
  check_target(folder)
  runs.check_language(config, workdir, "export")
  start = load_initial_model(config)
  mesh = runs.mesh_here(config)
  target = pathlib.Path(folder)
  architecture = check_model(config, start, adapters)
  # Not the target itself: an export that is broken off must not pass for a whole one.
  part = target.with_name(f"{target.name}.part")
  if hosts.is_main():
    shutil.rmtree(part, ignore_errors=True)  # Left by an export that was broken off.
  origin = origin_of(workdir)
  if adapters:
    params, _, step = runs.restore_tuned(config, workdir, start, mesh)
    base = configs.load(workdir).model.path or f"{workdir} before training"
    peft.save(part, start.language.module, params, base=base, dtype=dtype)
  else:
    _, language, params, step = runs.open_tuned(config, workdir, mesh)
    _write_model(config, workdir, start, language.module, params, part, origin, dtype)
  if hosts.is_main():
    _write_tokenizer(config, workdir, start, part)
    if target.is_dir():
      target.rmdir()  # It is empty.
    write.folder(part, target)  # So that a folder of this name is whole.
  return {"folder": str(folder), "step": step, "weights": states.field_used(config),
          "params": tree.count(params), "architecture": architecture,
          "like": None if adapters or origin is None else str(origin)}


def check_model(config, start: InitialModel, adapters: bool) -> str:
  """Returns a model's architecture as its config will name it; refuses one that has no Hugging Face format.

  Raises:
    ValueError: says what to do with it instead.
  """
  if not start.language.has_hf_form:
    raise ValueError(f"config.model.kind={config.model.kind!r}: a memory model has no Hugging Face form that "
                     "other programs could load; --mode=generate and --mode=eval use the run where it is")
  family = hf_config.family_of(start.language.module.shape())
  if family is atlas:
    logging.warning("the model has learned positions, as no pretrained one: config.model.path reads the "
                    "folder, transformers does not know its architecture, %s", family.ARCHITECTURE)
  if adapters and not start.adapted:
    raise ValueError("--adapters: this run trained the whole model (config.lora.rank=None); leave --adapters "
                     "out to export it")
  return family.ARCHITECTURE


def origin_of(workdir) -> pathlib.Path | None:
  """Returns the folder of the pretrained model at the root of a run, if it still has its weights."""
  path = configs.load(workdir).model.path
  # Through all runs between: the layout of the files is that of the first model.
  while path is not None and is_run(path):
    path = configs.load(path).model.path
  if path is None:
    return None
  try:
    folder = hf_import.find(path)
    tensor_files.TensorFolder(folder)
  except ValueError as error:
    # Only the layout of files is lost with it; the weights to export are the run's own.
    logging.warning("the weights are laid out anew, because the model this run started from cannot be read: "
                    "%s", error)
    return None
  return folder


def longest_tokens(config) -> int:
  """Returns the longest text that a model which was drawn here was trained on."""
  return max(config.data.segment_len, config.data.max_prompt_tokens + config.sampler.max_tokens)


def _write_model(config, workdir, start: InitialModel, module: Decoder, params, folder: pathlib.Path, origin,
                 dtype: str | None) -> None:
  """Writes weights and config: laid out like those of the origin, or of the run's copy of its config."""
  pretrained = pathlib.Path(workdir) / PRETRAINED / "config.json"
  # The mark between documents stands at the start and at the end of a text.
  if origin is not None or not pretrained.is_file():
    specials = {"bos_token_id": int(start.tokenizer.doc_id), "eos_token_id": int(start.tokenizer.doc_id)}
    # With an origin its own config is copied, special tokens included.
    hf_export.save(folder, module, params, like=origin, dtype=dtype, max_tokens=longest_tokens(config),
                   specials={} if origin is not None else specials)
    return
  settings = hf_config.read_json(pretrained)
  spelling = "dtype" if "dtype" in settings else "torch_dtype"
  dtype = dtype or settings.get(spelling) or "float32"
  hf_export.save(folder, module, params, dtype=dtype, max_tokens=longest_tokens(config))
  if hosts.is_main():
    tensor_files.write_json(folder / "config.json", {**settings, spelling: dtype})
    for name in hf_export.COPIED_FILES:
      if (pretrained.parent / name).is_file():
        write.copy(pretrained.parent / name, folder / name)


def _write_tokenizer(config, workdir, start: InitialModel, folder: pathlib.Path) -> None:
  """Writes the run's own tokenizer and chat template, in place of those of the model it started from."""
  asked = configs.load(workdir).data
  workdir = pathlib.Path(workdir)
  # The files of two tokenizers side by side would be read as a mixture of both.
  if asked.tokenizer != MODEL:
    for name in ("tokenizer.json", "tokenizer.model", *tokenizer_files.BESIDE):
      (folder / name).unlink(missing_ok=True)
  tokenizer_files.write(folder, workdir / TOKENIZER, max_tokens=longest_tokens(config))
  if start.template is not None and (asked.chat_template != MODEL or asked.tokenizer != MODEL):
    write.whole(folder / chats.FILES[0], start.template.source)
