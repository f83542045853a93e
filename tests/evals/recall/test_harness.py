"""lm-evaluation-harness: our model behind its interface, on tasks made here."""

import functools
import importlib.util
import json
import types

import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.evals.recall import harness
from atlas_jax.models import language as languages
from atlas_jax.models import lm
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from configs import memory_40m

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="needs the extra evals: lm-eval")


@functools.lru_cache
def made():
  """A config, its model and drawn parameters."""
  asked = memory_40m.get_config("smoke,pretrain")
  asked.eval.update(batch_rows=2)
  config = configs.resolve(asked)
  model = lm.build(config.model.to_dict())
  params = jax.jit(languages.of_memory(model).init)(jax.random.key(0))
  return config, model, params


def one_device():
  return meshes.make(devices=jax.devices()[:1])


@functools.lru_cache
def scorer():
  return harness.make_scorer(languages.of_memory(made()[1]), one_device(), rows=2)


def test_scores_of_ends_add_up_to_those_of_the_whole():
  ids = np.r_[256, list(b"def value(index): return index")]
  whole, end, last = scorer()(made()[2], [(ids, 1), (ids, 10), (ids[:10], 1)])
  assert np.isclose(whole[0], end[0] + last[0], rtol=1e-4) and whole[0] > 0
  assert 3 < whole[0] / (len(ids) - 1) < 8  # Near ln 257 at the start.


def test_the_likeliest_end_is_said_to_be_so():
  ids = np.r_[256, list(b"def value")]
  found = scorer()(made()[2], [(np.r_[ids, one], len(ids)) for one in range(257)])
  assert sum(likeliest for _, likeliest in found) == 1
  assert found[int(np.argmin([nats for nats, _ in found]))][1]
  assert np.isclose(sum(np.exp(-nats) for nats, _ in found), 1, rtol=1e-3)


def test_requests_are_answered_as_the_package_asks():
  class Model:
    """Stands in for the package's class of models."""

  package = types.SimpleNamespace(api=types.SimpleNamespace(model=types.SimpleNamespace(LM=Model)))
  asked = []
  score = lambda texts: asked.extend(texts) or [(float(len(ids) - start), start == 1) for ids, start in texts]
  wrapped = harness.wrap(package, score, lambda prompt, tokens: iter(["ab", "cSTOPd", "e"]), ByteTokenizer())
  request = lambda *args: types.SimpleNamespace(args=args)
  assert wrapped.loglikelihood([request("ab", "cde"), request("", "xy")]) == [(-3.0, False), (-2.0, True)]
  assert [ids[0] for ids, _ in asked] == [256, 256]
  assert wrapped.loglikelihood_rolling([request("abcd")]) == [-4.0]
  found = wrapped.generate_until([request("p", {"until": ["STOP"]}), request("p", {"until": "zz"}),
                                  request("p", {"until": ["d", "bc"], "max_gen_toks": 3})])
  assert found == ["abc", "abcSTOPde", "a"]
  with pytest.raises(ValueError, match="asks for text drawn at random"):
    wrapped.generate_until([request("p", {"do_sample": True, "temperature": 0.7})])


def test_tasks_are_names_or_files_with_a_name(tmp_path):
  (tmp_path / "a.yaml").write_text("# mine\ntask: 'letters'\noutput_type: x\n")
  (tmp_path / "b.yaml").write_text("output_type: x\n")
  found = harness._tasks(("arc_easy", f"{tmp_path}/a.yaml"))
  assert found == (["arc_easy", "letters"], {"letters": str(tmp_path)})
  with pytest.raises(ValueError, match="b.yaml', a file without a line 'task: NAME'"):
    harness._tasks((f"{tmp_path}/b.yaml",))
  with pytest.raises(ValueError, match="c.yaml', and there is no such file"):
    harness._tasks((f"{tmp_path}/c.yaml",))


@pytest.mark.skipif(INSTALLED, reason="lm-evaluation-harness is installed")
def test_without_the_package_the_extra_is_named():
  config, model, _ = made()
  asked = configs.resolve(_with(config, lm_eval_tasks="arc_easy"))
  with pytest.raises(ModuleNotFoundError, match="pip install 'atlas_jax.evals.' .lm_eval is missing"):
    harness.make(asked, model, ByteTokenizer(), one_device())


def _with(config, **fields):
  changed = config.as_configdict()
  changed.eval.update(tasks="lm_eval", **fields)
  return changed


TASK = """\
task: made_here
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no", "maybe"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
WRITTEN = """\
task: made_here_too
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{written}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@needed
@pytest.mark.timeout(600)
def test_a_task_file_made_here_is_run_without_a_network(tmp_path, monkeypatch):
  """Its accuracy is that of the model's own scores; what greedy decoding writes is matched exactly."""
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  config, model, params = made()
  choices, rows = ("yes", "no", "maybe"), []
  score = functools.partial(scorer(), params)
  engine = harness.engines.make(languages.of_memory(model))
  for n in range(4):
    question = f"is {n} a number?"
    texts = [np.r_[256, list(f"{question} {choice}".encode())] for choice in choices]
    best = int(np.argmin([nats for nats, _ in score([(ids, 1 + len(question)) for ids in texts])]))
    written = "".join(harness.streams.generate(languages.of_memory(model), params, ByteTokenizer(), question,
                                               tokens=4, temperature=0, engine=engine)).partition("\n")[0]
    rows.append({"question": question, "answer": best if n else (best + 1) % 3,
                 "written": written if n % 2 else "never"})
  file = tmp_path / "rows.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, text in (("choice", TASK), ("writing", WRITTEN)):
    (tmp_path / f"{name}.yaml").write_text(text.format(file=file))
  asked = configs.resolve(_with(config, lm_eval_tasks=f"{tmp_path}/choice.yaml,{tmp_path}/writing.yaml"))
  out = harness.make(asked, model, ByteTokenizer(), one_device())(Trained(params), step=0)
  assert out.scalars["eval/lm_eval/made_here/acc"] == 0.75
  assert out.scalars["eval/lm_eval/made_here_too/exact_match"] == 0.5
  assert {row["task"] for row in out.rows} == {"made_here", "made_here_too"} and "acc: 0.75" in out.text
