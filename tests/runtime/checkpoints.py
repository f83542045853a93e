"""Checkpoints of tests, as the pipeline writes them but for their weights."""
import hashlib
import pathlib

from atlas_jax.files import json_file, write
from atlas_jax.rollout import teaching

TURNS = ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant: {% endif %}")


def sha(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def write_checkpoint(output: pathlib.Path, *, template=None, trained_with=None, weights=b"weights",
                     **changes):
  """Writes output/rl_checkpoint of a teacher with the templates "plain"; returns `output`."""
  folder = output / "rl_checkpoint"
  folder.mkdir(parents=True, exist_ok=True)
  files = {"weights.bin": weights, **({} if template is None else {"chat_template.jinja": template.encode()})}
  for name, content in files.items():
    (folder / name).write_bytes(content)
  protocol = teaching.manifest(teaching.PLAIN, teacher_template=template)
  if trained_with:
    protocol["teacher_chat_template_sha256"] = trained_with
  manifest = {"format": "atlas_jax.rl_checkpoint/1", "role": "teacher", "protocol": protocol, "parent": None,
              "chat_template_sha256": None if template is None else sha(template.encode()),
              "files": {name: {"bytes": len(content), "sha256": sha(content)} for name,
                        content in files.items()},
              **changes}
  write.json(folder / "manifest.json", json_file.sealed(manifest))
  return output


def export_student(output: pathlib.Path) -> pathlib.Path:
  """Writes output/rl_checkpoint of a tiny student that has learnt nothing, with its weights; returns it."""
  from atlas_jax.language import export
  from tests import tuning
  from tests.language.test_export import leave_run

  config = tuning.config_of()
  leave_run(output / "run", config)
  folder = output / "rl_checkpoint"
  export.run(config, output / "run", folder)
  template = folder / "chat_template.jinja"
  template.write_text(TURNS)
  manifest = {"format": "atlas_jax.rl_checkpoint/1", "role": "student", "protocol": None, "parent": None,
              "chat_template_sha256": sha(template.read_bytes()),
              "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha(file.read_bytes())}
                        for file in sorted(folder.iterdir())}}
  write.json(folder / "manifest.json", json_file.sealed(manifest))
  return folder
