"""lm-evaluation-harness through its own interface: its tasks, few-shot prompts and metrics, our model.

The package is the extra `evals`. Tasks are names that it knows, whose data it fetches, or YAML files of one's
own beside their data, which need no network. A text is read whole, from the mark of documents on.
"""
import functools
import importlib
import pathlib
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.defaults import bounds
from atlas_jax.evals import EvalOut, stopping
from atlas_jax.language.decoding import engine as engines
from atlas_jax.language.decoding import streams
from atlas_jax.language.initial_model import merge_frozen
from atlas_jax.models import language as languages
from atlas_jax.models import lm
from atlas_jax.parallel import mesh as meshes

METRIC = "eval/lm_eval"
YAML = (".yaml", ".yml")
TASK_LINE = r"^task:\s*[\"']?([^\s\"'#]+)"
BLOCK_TOKENS = 128  # Whose logits exist at the same time, of every row; texts are padded to its doublings.
WRITTEN_TOKENS = 256  # At most, where a task does not say.


def make(config, model: lm.LM, tokenizer, mesh):
  """Makes the evaluation.

  Args:
    config: resolved; config.eval.lm_eval_tasks names the tasks.
    model: of the run.
    tokenizer: it was trained with.
    mesh: where its parameters live.

  Returns:
    run(trained, *, step, workdir) -> EvalOut with "eval/lm_eval/TASK/METRIC", as the package names them (a
    filter stands behind a comma, unless it is "none"), a row of each task, and a line of each metric.

  Raises:
    ValueError: if no task is named, or a file has no name in it.
    ModuleNotFoundError: if the package is not installed.
  """
  text = config.eval.lm_eval_tasks
  if text is None:
    raise ValueError("config.eval.lm_eval_tasks=None, and the evaluation 'lm_eval' runs the tasks that it "
                     "names, YAML files or names that lm-evaluation-harness knows; set it, or leave "
                     "the evaluation out")
  tasks, folders = _tasks(bounds.names_of(text))
  package = _package()
  model_ = languages.of_memory(model)
  scorer = make_scorer(model_, mesh, rows=config.eval.batch_rows)
  engine = engines.make(model_, mesh=mesh)
  limit = config.eval.lm_eval_limit

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    params = merge_frozen(trained.params, trained.frozen)
    write = functools.partial(_write, model_, params, tokenizer, engine)
    wrapped = wrap(package, functools.partial(scorer, params), write, tokenizer)
    named = [task for task in tasks if task not in folders]
    manager = package.tasks.TaskManager(include_path=sorted(set(folders.values())) or None,
                                        include_defaults=bool(named))
    found = package.simple_evaluate(model=wrapped, tasks=list(tasks), limit=limit, task_manager=manager,
                                    log_samples=False, bootstrap_iters=0)
    return out_of(found["results"])

  return run


def _package():
  """Imports lm-evaluation-harness.

  Raises:
    ModuleNotFoundError: says how it is installed.
  """
  try:
    package = importlib.import_module("lm_eval")
    importlib.import_module("lm_eval.api.model")
    importlib.import_module("lm_eval.tasks")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the evaluation 'lm_eval' needs lm-evaluation-harness: pip install "
                              f"'atlas_jax[evals]' ({error.name} is missing), or leave it out of "
                              "config.eval.tasks", name=error.name) from error
  return package


def _tasks(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """Returns the names of tasks, and of those that stand in files the folder."""
  tasks = []
  folders = {}
  for name in names:
    if not name.endswith(YAML):
      tasks.append(name)
      continue
    file = pathlib.Path(name).expanduser()
    if not file.is_file():
      raise ValueError(f"config.eval.lm_eval_tasks has {name!r}, and there is no such file")
    found = re.search(TASK_LINE, file.read_text(), re.MULTILINE)
    if found is None:
      raise ValueError(f"config.eval.lm_eval_tasks has {name!r}, a file without a line 'task: NAME'; name "
                       "that of a task")
    tasks.append(found[1])
    folders[found[1]] = str(file.parent.absolute())
  return tasks, folders


def make_scorer(language: languages.LanguageModel, mesh, *, rows: int):
  """Makes the function that scores the ends of texts.

  Args:
    language: the model.
    mesh: where its parameters live.
    rows: texts side by side.

  Returns:
    score(params, [(ids, start)]) -> [(nats, likeliest)]: of each text, what its ids from `start` on cost, and
    whether each of them is the likeliest. Ids begin with the mark of documents, and start is at least 1.
  """
  @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh))
  def read(params, tokens_BT, doc_BT, targets_BT):
    hidden_BTD, _ = language.read(params, tokens_BT, doc_BT)

    def block(given):
      hidden_BCD, target_BC = given
      logits_BCV = language.logits(params, hidden_BCD)
      nats_BC = -jnp.take_along_axis(jax.nn.log_softmax(logits_BCV), target_BC[..., None], axis=-1)[..., 0]
      return nats_BC, jnp.argmax(logits_BCV, axis=-1) == target_BC

    def blocks(x_BT):
      count = x_BT.shape[1] // BLOCK_TOKENS
      return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], count, BLOCK_TOKENS, *x_BT.shape[2:]), 1, 0)

    found = jax.lax.map(block, (blocks(hidden_BTD), blocks(targets_BT)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(tokens_BT.shape) for x in found)

  def score(params, texts):
    found = [(0.0, True)] * len(texts)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at][0]))  # Alike lengths side by side.
    for chosen in stopping.parts(order, rows):
      size = _padded(max(len(texts[at][0]) for at in chosen), language.align_tokens)
      tokens_BT = np.zeros((rows, size), np.int32)
      targets_BT = np.zeros((rows, size), np.int32)
      doc_BT = np.full((rows, size), -1, np.int32)
      for row, at in enumerate(chosen):
        ids = np.asarray(texts[at][0])
        tokens_BT[row, :len(ids) - 1] = ids[:-1]
        targets_BT[row, :len(ids) - 1] = ids[1:]
        doc_BT[row, :len(ids) - 1] = row
      nats_BT, likeliest_BT = map(np.asarray, read(params, tokens_BT, doc_BT, targets_BT))
      for row, at in enumerate(chosen):
        part = np.s_[row, texts[at][1] - 1:len(texts[at][0]) - 1]
        found[at] = float(nats_BT[part].sum(dtype=np.float64)), bool(likeliest_BT[part].all())
    return found

  return score


def _padded(length: int, align_tokens: int) -> int:
  """Returns the length that texts are padded to: few of them, so that few programs are compiled."""
  size = int(np.lcm(BLOCK_TOKENS, align_tokens))
  while size < length:
    size *= 2
  return size


def _write(language, params, tokenizer, engine, prompt: str, tokens: int) -> Iterator[str]:
  """Yields the likeliest text behind a prompt, piece by piece."""
  return streams.generate(language, params, tokenizer, prompt, tokens=tokens, temperature=0, engine=engine)


def wrap(package, score, write, tokenizer):
  """Returns a model as the package asks for one.

  Args:
    package: lm_eval.
    score: [(ids, start)] -> [(nats, likeliest)], see `make_scorer`.
    write: (prompt, tokens) -> pieces of text.
    tokenizer: of the ids.
  """
  doc = tokenizer.doc_id

  class Wrapped(package.api.model.LM):
    """The model of a run."""

    def loglikelihood(self, requests, **_):
      """Returns the log-probability of each continuation, and whether greedy decoding would write it."""
      texts = []
      for context, continuation in (request.args for request in requests):
        before = tokenizer.encode(context)
        # The ids of both together: a token may not lie across the border, as it would in no text.
        whole = np.r_[doc, tokenizer.encode(context + continuation)]
        texts.append((whole, min(1 + len(before), len(whole) - 1)))
      return [(-nats, likeliest) for nats, likeliest in score(texts)]

    def loglikelihood_rolling(self, requests, **_):
      """Returns the log-probability of each text."""
      return [-nats for nats, _ in score([(np.r_[doc, tokenizer.encode(request.args[0])], 1)
                                          for request in requests])]

    def generate_until(self, requests, **_):
      """Returns the likeliest text behind each prompt, up to one of the strings that end it."""
      return [_until(write, *request.args) for request in requests]

  return Wrapped()


def _until(write, prompt: str, options: dict) -> str:
  """Returns what is written before the first of the strings that end it.

  Raises:
    ValueError: for options that ask for random text.
  """
  if options.get("do_sample", False) and options.get("temperature", 0):
    raise ValueError(f"a task asks for text drawn at random ({options}), and this evaluation writes the "
                     "likeliest; set do_sample: false in its generation_kwargs")
  ends = options.get("until") or []
  ends = [ends] if isinstance(ends, str) else list(ends)
  text = ""
  for piece in write(prompt, int(options.get("max_gen_toks") or WRITTEN_TOKENS)):
    text += piece
    if cuts := [at for end in ends if end and (at := text.find(end)) >= 0]:
      return text[:min(cuts)]
  return text


def out_of(results: dict) -> EvalOut:
  """Turns what the package found into metrics, rows and lines."""
  scalars: dict[str, float] = {}
  rows = []
  for task, found in results.items():
    row = {"eval": "lm_eval", "task": task}
    for name, value in found.items():
      if isinstance(value, int | float) and not isinstance(value, bool):
        plain = name.removesuffix(",none")
        row[plain] = float(value)
        scalars[f"{METRIC}/{task}/{plain}"] = float(value)
    rows.append(row)
  lines = [f"{name.removeprefix('eval/')}: {value:.4g}" for name, value in scalars.items()]
  return EvalOut(scalars, "\n".join(lines), rows=tuple(rows))
