"""The checkpoint of a pipeline: a model as Hugging Face has it, and a manifest that accounts for it."""
import hashlib
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

from atlas_jax import config as configs
from atlas_jax import modes
from atlas_jax.data import chats
from atlas_jax.data.traces import provenance
from atlas_jax.files import inside, json_file, write
from atlas_jax.files.damage import Damaged
from atlas_jax.language import export
from atlas_jax.monitor import model_line
from atlas_jax.monitor import report as run_report
from atlas_jax.pipeline import places
from atlas_jax.pipeline.plan import Plan
from atlas_jax.workdir import PROTOCOL, TOKENIZER

FORMAT = "atlas_jax.rl_checkpoint/1"
MOST_ROWS = 200  # Of metrics in trainer_state.json; metrics.jsonl has all.
REMEDY = "make the checkpoint again, or fetch it again"


def make(plan: Plan, data: Mapping[str, Any], measured: Mapping[str, Any], summary: Mapping[str, Any]
         ) -> dict[str, Any]:
  """Writes the folder, whole or not at all, and returns its manifest with the "version" that it makes.

  Args:
    plan: resolved.
    data: of the ingest.
    measured: evaluations by name.
    summary: of the training.
  """
  workdir = plan.training.workdir
  target = plan.output / places.CHECKPOINT
  part = target.with_name(f".{target.name}.part")
  shutil.rmtree(part, ignore_errors=True)  # Left by a start that was killed.
  config = modes.config_of_run(str(workdir), {})
  exported = export.run(config, workdir, part)
  # At the top for transformers, and here for those who look for it by the folder's name.
  if (workdir / TOKENIZER).is_dir():
    shutil.copytree(workdir / TOKENIZER, part / TOKENIZER)
  write.json(part / places.TRAINER_STATE, _trainer_state(plan, summary))
  manifest = _manifest(plan, part, data, measured, exported)
  write.json(part / places.MANIFEST, json_file.sealed(manifest))
  shutil.rmtree(target, ignore_errors=True)  # Of an earlier training of this plan, or damaged.
  write.folder(part, target)
  return {**manifest, "version": version(target)}


def _manifest(plan: Plan, part: pathlib.Path, data: Mapping[str, Any], measured: Mapping[str, Any],
              exported: Mapping[str, Any]) -> dict[str, Any]:
  config = plan.training.config
  files = sorted(file for file in part.rglob("*") if file.is_file())
  hashes = provenance.file_hashes(files)
  protocol = plan.training.workdir / PROTOCOL
  template = part / chats.FILES[0]
  return {
      "format": FORMAT, "role": role_of(config), "recipe": config.recipe,
      "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "git_revision": model_line.commit(),
      "step": exported["step"], "params": exported["params"], "architecture": exported["architecture"],
      "parent": parent_of(plan),
      "protocol": json_file.read_sealed(protocol) if protocol.is_file() else None,
      "chat_template_sha256": sha256(template) if template.is_file() else None,
      "longest": {"prompt_tokens": prompt_tokens(config), "completion_tokens": config.sampler.max_tokens,
                  "model_tokens": export.longest_tokens(config)},
      "data": {**data["data"], **{name: data[name] for name in ("source", "sessions", "let_in", "filters")}},
      "metrics": {name: one["metrics"] if one else None for name, one in measured.items()},
      "files": {str(file.relative_to(part)): {"bytes": one["bytes"], "sha256": one["sha256"]}
                for file, one in zip(files, hashes, strict=True)}}


def prompt_tokens(config: Any) -> int:
  """Returns the longest prompt that a model was trained on."""
  return int(config.data.segment_len if config.recipe == "sft" else config.data.max_prompt_tokens)


def role_of(config: Any) -> str:
  """Returns whose work a model was trained for: that of the "teacher", or of the "student"."""
  learns_student = config.recipe in ("gkd", "sft") and config.traces.target == "student"
  return "student" if learns_student or config.recipe == "grpo" else "teacher"


def parent_of(plan: Plan) -> dict[str, Any]:
  """Returns what a training started from: its name, and its version, if it has a manifest."""
  first = plan.sft or plan.training
  path = first.config.model.path
  if path is None:
    return {"model": None, "version": None, "why": "drawn from the seed"}
  folder = pathlib.Path(path).expanduser()
  known = (folder / places.MANIFEST).is_file()
  # The name alone: where it lay says nothing on another machine.
  name = path if path.startswith("hf:") else folder.name
  return {"model": name, "version": version(folder) if known else None}


def version(folder) -> str:
  """Returns the version of a checkpoint: the SHA-256 of its manifest."""
  return sha256(pathlib.Path(folder) / places.MANIFEST)


def sha256(file: pathlib.Path) -> str:
  """Returns the SHA-256 of a small file."""
  return hashlib.sha256(file.read_bytes()).hexdigest()


def check(folder) -> dict[str, Any]:
  """Checks every file of a checkpoint against its manifest, which is returned.

  Raises:
    Damaged: naming a file that is missing, was changed, or is not in the manifest.
  """
  root = pathlib.Path(folder)
  file = root / places.MANIFEST
  manifest = json_file.read_sealed(file, remedy=REMEDY, needed=True)
  if manifest.get("format") != FORMAT:
    raise Damaged(file, f"has the format {manifest.get('format')!r}, and this program reads "
                        f"{FORMAT!r}", REMEDY)
  for name, recorded in manifest["files"].items():
    one = inside.path(root, name, named_by=file, remedy=REMEDY)
    if not one.is_file():
      raise Damaged(one, "is missing", REMEDY)
    if provenance.file_hashes([one])[0]["sha256"] != recorded["sha256"]:
      raise Damaged(one, f"has other contents than {file} says", REMEDY)
  # A file that was added may change what a loader reads, such as a chat template.
  there = {str(one.relative_to(root)) for one in root.rglob("*") if one.is_file()}
  if more := sorted(there - {*manifest["files"], places.MANIFEST}):
    raise Damaged(root / more[0], f"is not one of the files that {file} lists", REMEDY)
  return manifest


def _trainer_state(plan: Plan, summary: Mapping[str, Any]) -> dict[str, Any]:
  config = configs.load(plan.training.workdir)
  rows = run_report.read_metrics(plan.training.workdir)
  stride = max(1, -(-len(rows) // MOST_ROWS))
  # The last row stays whatever the stride is.
  shown = [row for number, row in enumerate(reversed(rows)) if number % stride == 0][::-1]
  return {"global_step": summary["steps"], "max_steps": config.optim.steps,
          "train_batch_size": config.data.batch_rows, "learning_rate": config.optim.lr, "seed": config.seed,
          "summary": {name: value for name, value in summary.items() if name != "rows"}, "log_history": shown}
