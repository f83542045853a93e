"""Distillation between pretrained models, each with a tokenizer and a chat template of its own."""

import json
import shutil

import jax
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.recipes import gkd
from atlas_jax.state import Trained
from configs import gkd as config_file
from tests import hf_fixture, runs, teachers
from tests.helpers import quick_compilation

pytest.importorskip("tokenizers", reason="needs the extra hf")
pytest.importorskip("jinja2", reason="needs the extra hf")
TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|stop|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")  # fmt: skip
ROWS = [{"messages": [{"role": "user", "content": f"What is {a} and {a}?"},
                      {"role": "assistant", "content": f"{a} and {a} is {2 * a}."}]}
        for a in range(10, 30)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Has a student of bytes, a teacher that has merged them, and chats."""
  folder = tmp_path_factory.mktemp("gkd_chats")
  shutil.copytree(hf_fixture.FOLDER / "qwen2_tiny", folder / "student")
  for file in (hf_fixture.FOLDER / "byte_tokenizer").iterdir():
    shutil.copyfile(file, folder / "student" / file.name)
  teachers.published(folder / "teacher", vocab_size=320)
  (folder / "teacher" / "atlas_tokenizer.json").unlink()
  texts = [message["content"].encode() for row in ROWS for message in row["messages"]]
  tokenizers.train_bpe(texts, vocab_size=300, folder=folder / "teacher")
  file = folder / "teacher" / "tokenizer.json"
  content = json.loads(file.read_text())
  specials = ("<|user|>", "<|assistant|>", "<|stop|>")
  content["added_tokens"] = [
    {"id": 299 + at, "content": name, "special": True, "single_word": False, "lstrip": False,
     "rstrip": False, "normalized": False} for at, name in enumerate(specials)]  # fmt: skip
  file.write_text(json.dumps(content))
  (folder / "teacher" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|stop|>"}))
  (folder / "teacher" / "chat_template.jinja").write_text(TEMPLATE)
  (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return folder


def make_config(folder, **changes):
  config = config_file.get_config()
  config.model.path, config.distill.teacher = str(folder / "student"), str(folder / "teacher")
  config.data.update(files=str(folder / "chats.jsonl"), batch_rows=4, held_out_frac=0.3)
  config.decoder.update(dtype="float32", remat="none")
  config.sampler.max_tokens = 32
  config.eval.max_problems = 4
  config.train.accumulate_steps = 1
  return runs.changed(config, changes)


def shown(batch, tokenizer, prefix=""):
  return [tokenizer.decode(row[doc == 0])
          for row, doc in zip(batch[f"{prefix}tokens_BS"], batch[f"{prefix}doc_BS"])]  # fmt: skip


@pytest.mark.parametrize("on_policy_frac", (0.0, 1.0))
def test_each_reads_the_same_text_in_its_own_ids_and_template(folder, on_policy_frac):
  config, mesh = make_config(folder, distill__on_policy_frac=on_policy_frac), runs.one_device()
  with quick_compilation():
    recipe, pair = recipes.load(config, mesh), gkd.pair_of(config)
    given = recipe.load(mesh, True)
    trained = Trained(given.params, given.frozen)
    batch = recipe.source.next(trained)
    loss = jax.jit(lambda params, batch: recipe.loss(params, batch, frozen=dict(given.frozen), carry=(),
                                                     rng=jax.random.key(0)))  # fmt: skip
    out = loss(given.params, batch)
    divergence = recipe.evals["divergence"].run(trained, step=0).scalars
  own, taught = (shown(batch, start.tokenizer, prefix)
                 for start, prefix in ((pair.student, ""), (pair.teacher, "teacher_")))  # fmt: skip
  for mine, theirs in zip(own, taught):
    assert "What is" in mine and "What is" in theirs
    if not on_policy_frac:
      assert mine.rstrip().endswith(theirs[theirs.index("?") + 1:])
  spans_B = batch["span_mask_BN"].sum(axis=1)
  assert np.isfinite(float(out.loss)) and float(out.weight) == spans_B.sum() > 0
  assert np.isfinite(divergence["val/divergence_nats"])
  if not on_policy_frac:  # The text, cut less often than at every byte, and its end.
    lengths_B = batch["completion_mask_BT"].sum(axis=1)
    assert (spans_B < lengths_B).all() and (spans_B > 2).all()
    assert not batch["single_BN"].all(axis=1).any()


def test_a_teacher_may_be_shown_the_student_s_template(folder):
  config = make_config(folder, distill__teacher_template="student")
  pair = gkd.pair_of(config)
  messages = [{"role": "user", "content": "a"}]
  assert pair.teacher.template.render(messages) == pair.student.template.render(messages)
