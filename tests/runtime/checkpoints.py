"""Checkpoints of tests, as the pipeline writes them but for their weights."""
import hashlib
import pathlib

from atlas_jax.files import json_file, write
from atlas_jax.rollout import teaching


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
