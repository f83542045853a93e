"""The model card of a run that is handed over: what it is, its numbers, how it is loaded, and its limits.

All of it is read off the run's config and summary; nothing is claimed that the run did not measure.
"""
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax.workdir import METRICS, REPORT, SUMMARY, TOKENIZER, WEIGHTS

# Of summary.json: what it says of speed and time, and what is too long for a table of a card.
_NOT_SHOWN = re.compile(
    r"time_.*|seconds|tokens_per_s|\w+_per_s|step_s|in_step_frac|goodput_frac|flops_.*|model_flops.*|peak_flops.*|"
    r"resumed_from_step|params|steps|\w+_seen|train_loss_nats|.*_(layer|by_position|by_distance|by_items)_.*|"
    r"recall_(key_value|passkey|continuation|entity)_.*|.*_(tokens|documents|texts|answers)|raw_gate_.*|collapse_.*")
_GAIN = re.compile(r"memory_gain_(\w+)_nats")
_MOST_ROWS = 40


class CardFacts(NamedTuple):
  """Facts that a card is written from."""

  repo: str  # OWNER/NAME, or NAME
  config: Any  # of the run
  summary: Mapping[str, Any]  # {} of a run that is not finished
  step: int
  params: int  # in the file of weights
  pictured: bool  # whether there is a picture of the curves
  optimizer: bool  # whether a checkpoint lies beside the weights


def write(facts: CardFacts) -> str:
  """Returns the text of README.md."""
  config = facts.config
  return "\n".join([
      *_front_matter(facts), "", f"# {facts.repo.rpartition('/')[2]}", "", _what(facts), "",
      "## Load it", "", *_loading(facts), "",
      "## Training", "", *_training(facts), "",
      "## Evaluation", "", *_evaluation(facts.summary), "",
      "## Limits", "", *(f"- {line}" for line in limits(facts)), "",
      "## Files", "",
      f"- `{WEIGHTS}`: {facts.params:,} numbers by the names of the parameters in atlas_jax, "
      f"{'their moving average, ' if config.optim.ema_decay is not None else ''}after update {facts.step:,}.",
      f"- `config.json`: every setting of the run; `{TOKENIZER}/`, where it is a language model: its "
      "tokenizer.",
      f"- `{METRICS}`: all rows that the run wrote, by update; `{SUMMARY}`: the numbers of its end, if it "
      "ended.",
      *(["- `checkpoints/`: the newest checkpoint with the optimizer; the same command goes on from it where "
         "this repository is downloaded as the workdir."] if facts.optimizer else []), ""])


def _front_matter(facts: CardFacts) -> list[str]:
  config = facts.config
  tags = ["atlas_jax", "jax", config.recipe.rpartition(".")[2]]
  if config.recipe != "trm":
    tags += ["neural-memory", f"memory-rule-{config.model.memory.rule.rpartition('.')[2]}"] \
        if config.model.kind == "memory" else ["decoder"]
  pipeline = [] if config.recipe == "trm" else ["pipeline_tag: text-generation"]
  # Quoted: a tag of letters and digits alone could be read as a number or a truth value.
  return ["---", "library_name: atlas_jax", *pipeline, "tags:", *(f'- "{tag}"' for tag in tags), "---"]


def _what(facts: CardFacts) -> str:
  config = facts.config
  size = f"{facts.params:,} parameters"
  if config.recipe == "trm":
    kind = f"A recursive model that solves puzzles ({config.puzzles.name}), {size}"
  elif config.model.kind == "memory":
    kind = (f"A language model with a neural long-term memory (rule `{config.model.memory.rule}`, mixed in "
            f"as `{config.model.memory_mix}`), {size}")
  else:
    kind = f"A language model (decoder), {size}"
  seen = next((f" and {value:,} {name.removesuffix('_seen')}" for name, value in facts.summary.items()
               if name.endswith("_seen") and isinstance(value, int)), "")
  return f"{kind}, trained with atlas_jax by its recipe `{config.recipe}` for {facts.step:,} updates{seen}."


def _loading(facts: CardFacts) -> list[str]:
  use = "--mode=solve --from={} --task=FILE.json" if facts.config.recipe == "trm" else \
      '--mode=generate --from={} --prompt="def " --tokens=100'
  start = "config.trm.path" if facts.config.recipe == "trm" else "config.model.path"
  return ["```", f"python -m atlas_jax.main {use.format(facts.repo)}", "```", "",
          "It needs atlas_jax with the extra `hf`, and for a private repository `HF_TOKEN` in the "
          f"environment. A downloaded folder does as well: `--from=FOLDER`, or `--{start}=FOLDER` to train "
          "on from it. Other programs do not know this layout; `--mode=export --from=... --to=FOLDER` writes "
          "decoders as transformers loads them."]


def _training(facts: CardFacts) -> list[str]:
  config = facts.config
  of = f" of {config.optim.steps:,}" if config.optim.steps else ""
  rows = [("updates", f"{facts.step:,}{of}"),
          ("rows per update", f"{config.data.batch_rows:,}"),
          ("optimizer", f"{config.optim.name}, learning rate {config.optim.lr:g}, {config.optim.schedule}"),
          ("seed", str(config.seed))]
  if config.recipe != "trm":
    rows.insert(1, ("data", f"`{config.data.name}`"))
    rows.insert(2, ("tokenizer", f"`{_plain_name(config.data.tokenizer)}`"))
  loss = facts.summary.get("train_loss_nats")
  if isinstance(loss, int | float):
    rows.append(("loss of the last updates", f"{loss:.4g}"))
  table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
  return [*table, *(["", f"![Curves of the training]({REPORT})"] if facts.pictured else [])]


def _plain_name(name: str) -> str:
  # A path of the machine it was trained on says nothing to a reader.
  return name.rstrip("/").rpartition("/")[2] if not name.startswith("hf:") else name


def _evaluation(summary: Mapping[str, Any]) -> list[str]:
  shown = [(name, value) for name, value in summary.items()
           if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
           and not _NOT_SHOWN.fullmatch(name) and not name.endswith(("_low", "_high"))]
  if not shown:
    return [f"None: the run was not finished, or held nothing out; see `{METRICS}`."]
  lines = ["Numbers of the end of the run, on text that was not trained on where the name begins with `val`; "
           f"`{SUMMARY}` has all of them.", "", "| number | value | interval |", "| --- | --- | --- |"]
  for name, value in shown[:_MOST_ROWS]:
    low, high = summary.get(f"{name}_low"), summary.get(f"{name}_high")
    both = isinstance(low, int | float) and isinstance(high, int | float)
    lines.append(f"| {name} | {value:.5g} | {f'{low:.5g} to {high:.5g}' if both else ''} |")
  return lines


def limits(facts: CardFacts) -> list[str]:
  """Returns what a reader must not expect of the model, one sentence or two each."""
  config = facts.config
  summary = facts.summary
  found = []
  if not summary or config.optim.steps and facts.step < config.optim.steps:
    of = f" of {config.optim.steps:,}" if config.optim.steps else ""
    found.append(f"The training was not finished when this was sent: update {facts.step:,}{of}.")
  gains = [match[1] for name in summary if (match := _GAIN.fullmatch(name))]
  idle = [name for name in gains if not _above_zero(summary.get(f"memory_gain_{name}_nats_low"))]
  if idle:
    found.append("What the memory holds was not shown to help on held-out text: the interval of the memory "
                 f"gain ({', '.join(idle)}) is not above zero.")
  elif config.recipe != "trm" and config.model.kind == "memory" and not gains:
    found.append("Whether the memory helps was not measured here (no number of memory gain).")
  if summary.get("collapsed"):
    found.append("Signs of a collapsed memory stood at the end of the training.")
  if config.recipe != "trm":
    found.append(f"It was trained on texts of {config.data.segment_len:,} tokens at a time; longer ones were "
                 f"{'continued with the memory carried over' if config.data.carry else 'not seen'}. It has "
                 "no training to refuse anything, and writes what its data made likely: wrong, private or "
                 "offensive text may be among it.")
  found.append("The licence of the training data was not checked; who sends this on has to.")
  found.append("Only atlas_jax reads these weights, in the version they were made with or one that says it "
               "can.")
  if not facts.optimizer:
    found.append("There is no optimizer state: a training can start from these weights, not go on as if it "
                 "had never stopped.")
  return found


def _above_zero(value: Any) -> bool:
  return isinstance(value, int | float) and value > 0
