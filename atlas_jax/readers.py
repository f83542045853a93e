"""The recipes that read each setting, so that one that nobody reads is refused and not ignored.

`READERS` names, for a field or for a group of fields, the recipes that read it; the longest name counts.
Behind "if" stand conditions: a field, then = or !=, and values with | between them, which may hold *; several
conditions have & between them. A recipe of one's own, with a dotted name, may read every field.
"""
import fnmatch
from collections.abc import Collection
from typing import NamedTuple

from absl import logging

from atlas_jax import modules
from atlas_jax.defaults import default, judging, teaching
from atlas_jax.fields import MIXES, at, flat, mixes

TEXT = "memory_lm episodic"  # They train memory models from text.
ALL = f"{TEXT} trm sft grpo teacher gkd ranked"
LANGUAGE = f"{TEXT} sft grpo teacher gkd ranked"
TUNED = "sft grpo teacher gkd ranked"
ASKED = "sft grpo teacher gkd"  # They have problems answered, if only to evaluate.
GRADED = "sft grpo gkd"  # Their own answers are graded.
POLICY = "grpo teacher"

MEMORY = f"{TEXT}; {TUNED} if model.kind=memory & model.path=None"
MEMORY_RUN = f"{TEXT} gkd teacher; sft grpo ranked if model.kind=memory"  # Also of the other model.
DECODER = f"{TUNED} if model.kind=decoder & model.path=None"
DECODER_RUN = "gkd teacher; sft grpo ranked if model.kind=decoder"
ADAPTED = f"{TUNED} if lora.rank!=None; {TUNED} if lora.path!=None"
OURS = "model.kind=memory & model.path=None"  # When tuning: a pretrained model has its own.


def _with(*facts: str) -> str:
  """Writes the condition that one of some facts is true of the way in which memory is mixed in."""
  return f"model.memory_mix={'|'.join(sorted({mix for fact in facts for mix in mixes(fact)}))}"


def _without(*facts: str) -> str:
  """Writes it by the other ways, where these are fewer to name."""
  return f"model.memory_mix!={'|'.join(sorted({*MIXES} - {mix for fact in facts for mix in mixes(fact)}))}"


def _beside(condition: str) -> str:
  """Writes the recipes that read a field of the memory model under a condition."""
  return f"{TEXT} if {condition}; {TUNED} if {OURS} & {condition}"


def _of_texts(*conditions: str) -> str:
  """Writes that a field of the corpus is read: to train on, or to hide things in that are asked for."""
  return "; ".join(f"{TEXT} if {' & '.join((one, *conditions))}" for one in
                   ("data.source!=modular_arithmetic", "eval.tasks!=None"))


# Blocks without a memory do not read its fields; chunk_size still cuts documents. The lists come from the
# files of the blocks, so that a new way of mixing needs no entry here.
MIXED = _without("memory")
WRITING = _with("fast_weights")
CHANGING = _with("fast_weights", "inner_steps")
BESIDE = _beside(MIXED)
HELD = _beside(WRITING)  # Convolutions alone have no fast weights.
WRITTEN = _beside(f"{WRITING} & model.memory.writes=True")
APART = sorted({*mixes("attention")} - {*mixes("segments")})  # No memory is read through their attention.
ATTENDING = f"{_beside(_with('attention'))}; {_beside('model.memory_layers!=None')}"
# Initial values of gates and convolutions: a model that is read has its own, whoever trains it on.
FRESH = f"{TEXT} if model.path=None &"
DRAWN = BESIDE.replace(f"{TEXT} if", FRESH)
DRAWN_WRITTEN = WRITTEN.replace(f"{TEXT} if", FRESH)
ROWS = "if data.name=files|hf:*"
TRACED, ANEW, OWN = "data.name=traces", "traces.completions=sampled", "traces.target=student"
BOARDS = "trm if puzzles.name=sudoku|maze"
ARC = "trm if puzzles.name=arc*|files"

# Options of evaluations -> the names in config.eval.tasks that read them, as the files of the tasks say.
TASK_READS = modules.constants("data/recall", "READS") | {"lm_eval": ("lm_eval_tasks", "lm_eval_limit")}
TASK_OPTIONS = {name: "|".join(f"*{task}*" for task, reads in TASK_READS.items() if name in reads)
                for reads in TASK_READS.values() for name in reads}

# An entry for a field takes it out of the entry of its group: nothing is inherited, and it repeats the
# recipes of the group that it keeps.
READERS = {
    "recipe": ALL,
    "seed": ALL,
    "optim": ALL,
    "train": ALL,
    **dict.fromkeys(("checkpoint", "mesh", "hosts", "monitor", "alerts", "upload"), ALL),
    "checkpoint.best_metric": f"{ALL} if checkpoint.keep_best!=0",
    "checkpoint.best_mode": f"{ALL} if checkpoint.keep_best!=0",
    "monitor.phases": f"{TEXT} if eval.accuracy=True",
    "window": f"{TEXT} if {_with('attention')}; {TEXT} if model.memory_layers!=None",
    "window.least_tokens": f"{TEXT} if window.kind!=full",
    "window.delay_steps": f"{TEXT} if window.kind=delayed",
    # Where attention reads the memory, rows without attention would have neither.
    "window.drop_frac": f"{TEXT} if model.memory_mix={'|'.join(APART)}; {TEXT} if "
                        f"model.memory_layers!=None & model.memory_mix!={'|'.join(mixes('segments'))}",
    "optim.decay_frac": f"{ALL} if optim.schedule=wsd",
    "train.eval_from_step": f"{ALL} if train.eval_every_steps!=None",
    "optim.gate_lr_scale": f"{TEXT} if {MIXED}; {TUNED} if model.kind=memory",
    "optim.eps": f"{ALL} if optim.name=adamw & optim.second_moment!=factored",
    **dict.fromkeys(("optim.first_moment", "optim.second_moment"), f"{ALL} if optim.name=adamw"),
    "train.param_dtype": LANGUAGE,
    "data.source": TEXT,
    "data.name": f"{_of_texts()}; {TUNED}",
    "data.path": _of_texts("data.name!=python_stdlib|hf:*"),
    "data.text_field": _of_texts("data.name!=python_stdlib"),
    "data.limit_bytes": _of_texts(),
    "data.bad_input_frac": _of_texts(),
    "data.tokenizer": LANGUAGE,
    "data.segment_len": f"{TEXT} sft ranked",
    "data.batch_rows": ALL,
    "data.held_out_frac": f"{TEXT} {ASKED}; ranked if ranked.eval_files=None",
    "data.align_tokens": TEXT,
    "data.carry": TEXT,
    "data.transform": f"{TEXT} if data.source=text",
    "data.threads": f"{TEXT} if data.source!=modular_arithmetic; trm",
    "data.cache_dir": f"{_of_texts()}; trm",
    "data.download": f"{_of_texts('data.name!=python_stdlib|files')}; {ASKED} if data.name=hf:*; "
                     "trm if puzzles.path=hub",
    "data.files": TUNED,
    "data.fields": f"{ASKED} {ROWS}; ranked if data.files!=None & data.name!=traces",
    "data.options": f"{ASKED} if data.name!=traces; ranked if data.files=None; memory_lm if "
                    "data.source=recall_tasks|modular_arithmetic",
    "data.epochs": "sft ranked if optim.steps=None",
    "data.max_problems": "sft gkd",
    "data.group_size": POLICY,
    "data.max_prompt_tokens": f"{POLICY} gkd",
    "traces": f"{TUNED} if {TRACED}",
    "traces.target": f"sft gkd if {TRACED}",
    "traces.completions": f"grpo if {TRACED}",
    "traces.prompt": f"grpo if {TRACED} & {ANEW}; teacher ranked if {TRACED}; "
                     f"sft gkd if {TRACED} & traces.target!=teacher",
    **dict.fromkeys(("traces.shown", "traces.verified_reward"), f"sft gkd if {TRACED} & {OWN}"),
    "traces.lesson": f"sft gkd if {TRACED} & traces.target=teacher",
    "traces.max_reject_frac": f"{TUNED} if {TRACED} & traces.strict=False",
    "data.overlong": TUNED,
    "data.packed": "sft",
    "data.turns": "sft",
    "data.chat_template": TUNED,
    "data.template_values": f"{TUNED} if data.chat_template!=None",
    "model.kind": LANGUAGE,
    "model.path": LANGUAGE,
    "model": MEMORY,
    "model.heads": ATTENDING,
    "model.window_tokens": ATTENDING,
    "model.inner": _beside(_with("inner_steps")),
    "model.persistent_tokens": _beside(_with("segments")),
    "model.gate_floor": _beside(_without("gate")),
    **{f"model.memory.{name}": BESIDE for name in
       ("conv_taps", "shift", "shared_qk", "activation", "value_source", "qkv_source", "read_norm")},
    **{f"model.memory.{name}": HELD for name in ("rule", "options", "initial", "writes")},
    **{f"model.memory.{name}": WRITTEN for name in ("write_rate_max", "remat_chunks", "impl")},
    **{f"model.memory.{name}": DRAWN_WRITTEN for name in
       ("retention_init", "momentum_init", "write_rate_init", "half_life_spread")},
    "model.memory.conv_init": DRAWN,
    "model.ngram_embed.table_rows": f"{TEXT} if model.ngram_embed.max_n!=None; {TUNED} if {OURS} & "
                                    "model.ngram_embed.max_n!=None",
    "model.memory_layers": _beside(_without("memory", "inner_steps")),
    "model.memory.chunk_size": _beside(f"model.memory_mix!={'|'.join(mixes('inner_steps'))}"),
    "model.dtype": MEMORY_RUN,
    "model.remat": MEMORY_RUN,
    "model.scan_unroll": MEMORY_RUN,
    "decoder": DECODER,
    "decoder.rope_base": f"{DECODER} & decoder.learned_positions=None",
    "decoder.dtype": DECODER_RUN,
    "decoder.remat": DECODER_RUN,
    "decoder.scan_unroll": DECODER_RUN,
    "decoder.attention_block_tokens": DECODER_RUN,
    "lora": TUNED,
    "lora.alpha": ADAPTED,
    "lora.scaling": ADAPTED,
    "lora.targets": ADAPTED,
    "sft": "sft",
    "loss": LANGUAGE,
    "loss.kind": TEXT,
    "sampler": ASKED,
    "sampler.temperature": f"{POLICY} gkd",
    "rewards": GRADED,
    "advantage": POLICY,
    "advantage.kind": f"{POLICY} if advantage.per_reward=False",
    "advantage.deviation": f"{POLICY} if advantage.kind=normalized|batch & advantage.per_reward=False",
    "advantage.epsilon": f"{POLICY} if advantage.kind=normalized|batch; grpo if advantage.per_reward=True",
    "advantage.per_reward": "grpo",  # A teacher's leaks are settled over the sum of its rewards.
    **judging.readers(GRADED),
    "rollout": POLICY,
    "rollout.pad_tokens": f"{POLICY} gkd",
    "rollout.max_resamples": f"{POLICY} if rollout.zero_std_groups=resample",
    "policy": POLICY,
    **{f"policy.{name}": f"{POLICY} if policy.kl_weight!=0.0" for name in ("kl_estimator", "kl_ratio")},
    "policy.reference_share": f"{POLICY} if policy.reference_every_steps!=None",
    **{f"policy.sampler_{end}": f"{POLICY} if policy.sampler_correction!=None" for end in ("low", "high")},
    "distill": "gkd",
    "distill.baseline": "gkd if data.held_out_frac!=0.0",
    "distill.beta": "gkd if distill.alpha=None",
    "distill.off_policy_source": "gkd if distill.on_policy_frac!=1.0",
    "distill.teacher_template": "gkd if data.chat_template!=None",
    **teaching.READERS,
    "ranked": "ranked",
    **{f"ranked.{name}": "ranked if ranked.objective=ranked" for name in
       ("preference", "score_scale", "margin_scale", "pair_weight", "pair_weighting", "min_preference",
        "anchored")},
    "ranked.kl_weight": "ranked if ranked.objective=group_relative",
    "vllm": f"{POLICY} gkd if sampler.kind=vllm",
    **{f"vllm.{name}": f"{POLICY} gkd if sampler.kind=vllm & vllm.url=None" for name in
       ("command", "arguments", "port")},
    "server": f"{POLICY} gkd if sampler.kind=server",
    "serve": LANGUAGE,
    "trm": "trm",
    "trm.rope_base": "trm if trm.positions=rope & trm.mixer=attention",
    "supervision": "trm",
    "table": "trm if trm.row_width!=0",
    "puzzle_eval": "trm",
    "puzzle_eval.halt_threshold": "trm if puzzle_eval.mode=halting",
    "puzzle_eval.vote": "trm if puzzles.name=arc*|files|built",
    "puzzles": "trm",
    "puzzles.path": "trm",
    "puzzles.one_solution": "trm if puzzles.name=sudoku & puzzles.path!=None",
    "puzzles.concept_path": ARC,
    "puzzles.side": BOARDS,
    "puzzles.n_train": BOARDS,
    "puzzles.n_test": BOARDS,
    "puzzles.n_augmentations": "trm if puzzles.name!=built",
    "puzzles.min_rating": BOARDS,
    "puzzles.canvas": ARC,
    "puzzles.max_tasks": ARC,
    "puzzles.seed": "trm if puzzles.name!=built",
    "puzzles.shift": ARC,
    "puzzles.epochs": "trm if optim.steps=None",
    "puzzles.epochs_per_iteration": "trm if puzzles.sampler=original",
    "eval.batch_rows": ALL,
    "eval.max_tokens": TEXT,
    "eval.gain_max_tokens": f"{TEXT} if {CHANGING}",
    "eval.collapse_evals": f"episodic if {CHANGING}",
    "eval.baseline": f"{TEXT} if {CHANGING} & data.held_out_frac!=0.0",
    "eval.transform": TEXT,
    "eval.baselines": TEXT,
    "eval.accuracy": f"{TEXT} if data.held_out_frac!=0.0",
    "eval.sample_prompt": f"{TEXT} sft if eval.sample_tokens!=0",
    "eval.sample_tokens": f"{TEXT} sft",
    "eval.tasks": TEXT,
    "eval.task_samples": f"{TEXT} if eval.tasks!=None; episodic",
    **{f"eval.{name}": f"{TEXT} if eval.tasks={tasks}" for name, tasks in TASK_OPTIONS.items()},
    **{f"eval.{name}": f"episodic; {TEXT} if eval.tasks={TASK_OPTIONS[name]}" for name in
       ("episode_items", "episode_distances")},
    "episode": "episodic",
    **{f"episode.{name}": f"episodic if {_with('gate')}" for name in
       ("phase_fracs", "gate_floors", "read_target")},
    "eval.max_problems": ASKED,
    "eval.grader": GRADED,
    "eval.temperature": ASKED,
    "eval.shown": ASKED,
}
OFF = {"eval.sample_tokens": 0, "eval.sample_prompt": ""}  # Ask for nothing, so no recipe need read them.
REMEDIES = {"traces": "set config.data.name=traces",
            "data.path": "set config.data.name=files to read it",
            "data.epochs": "set config.optim.steps=None", "puzzles.epochs": "set config.optim.steps=None",
            "vllm": "set config.sampler.kind=vllm",
            "server": "set config.sampler.kind=server",
            "window.least_tokens": "set config.window.kind=random or delayed",
            "window.delay_steps": "set config.window.kind=delayed",
            "lora": "set config.lora.rank"}


class Condition(NamedTuple):
  """A condition on another field."""

  field: str
  equal: bool  # whether it must be one of the values, or none of them
  values: tuple[str, ...]

  def holds(self, config) -> bool:
    """Returns whether a config meets it."""
    # Compared as text: values stand in READERS as Python prints them, so a weight that is off is 0.0 there,
    # and not 0.
    value = str(at(config, self.field))
    return any(fnmatch.fnmatchcase(value, one) for one in self.values) == self.equal

  def __str__(self) -> str:
    if self.values == ("None",):
      return f"config.{self.field}=None" if self.equal else f"config.{self.field} is set"
    values = " or ".join(self.values)
    return f"config.{self.field} is {'' if self.equal else 'other than '}{values}"


class FieldReader(NamedTuple):
  """Recipes that read a field, if all conditions hold."""

  recipes: tuple[str, ...]
  conditions: tuple[Condition, ...]


def _parse(text: str) -> tuple[FieldReader, ...]:
  readers = []
  for part in text.split(";"):
    names, _, wanted = part.partition(" if ")
    conditions = []
    # The first = parts field and values; of != the field has kept the mark.
    for condition in filter(None, (one.strip() for one in wanted.split("&"))):
      field, _, values = condition.partition("=")
      conditions.append(Condition(field.rstrip("!"), not field.endswith("!"), tuple(values.split("|"))))
    readers.append(FieldReader(tuple(names.split()), tuple(conditions)))
  return tuple(readers)


PARSED = {name: _parse(text) for name, text in READERS.items()}


def readers_of(name: str) -> tuple[FieldReader, ...] | None:
  """Returns who reads a field; None where no entry of `READERS` covers it."""
  while name:
    if name in PARSED:
      return PARSED[name]
    name = name.rpartition(".")[0]
  return None


def recipes_of(name: str) -> list[str]:
  """Lists the recipes that read a field, whatever the conditions."""
  return [recipe for reader in readers_of(name) or () for recipe in reader.recipes]


def is_read(config, name: str) -> bool:
  """Returns whether the recipe of a config reads a field, as far as its other fields go."""
  return _unmet(config, name) == ()


def _unmet(config, name: str) -> tuple[Condition, ...] | None:
  """Returns the conditions that do not hold: () if the field is read, None if the recipe never reads it."""
  recipe = config.recipe
  readers = readers_of(name)
  # It is not known here what a source of the user's own reads of config.data, nor what a recipe of the user's
  # own reads: nothing of that is refused.
  others = name.startswith("data.") and recipe in TEXT.split() and "." in config.data.source
  if readers is None or others or recipe not in ALL.split():
    return ()
  unmet = [tuple(one for one in reader.conditions if not one.holds(config))
           for reader in readers if recipe in reader.recipes]
  # Of several entries the one that is nearest to being met, which is what the error names.
  return min(unmet, key=len) if unmet else None


def check(config, given: Collection[str] = (), *, only: Collection[str] | None = None) -> None:
  """Refuses settings that the recipe of a config does not read, and names those that a flag leaves unused.

  Args:
    config: not resolved: fields that are derived stand at their defaults.
    given: fields that the command line sets. Where one of them makes a setting of the config file unused, as
      --config.optim.steps=100 does with config.data.epochs=1, that is logged and not refused.
    only: fields that are checked; None: all.

  Raises:
    ValueError: names the field, its value, who reads it, and what to do.
  """
  usual = flat(default())
  unused = []
  for name, value in flat(config).items():
    changed = name not in usual or value != usual[name]
    # A field at its default asks for nothing, and is not refused for not being read, unless a flag names it.
    asked = (only is None or name in only) and (changed or name in given)
    if not asked or name in OFF and value == OFF[name]:
      continue
    unmet = _unmet(config, name)
    # A flag that sets a default is refused only if the recipe never reads the field: under other conditions
    # it may be there to be safe.
    if unmet == () or unmet and not changed:
      continue
    # A flag chose another recipe or another value of a condition: the config file is not at fault.
    causes = {"recipe"} if unmet is None else {one.field for one in unmet}
    if name not in given and causes & set(given):
      who = _listed(recipes_of(name)) if unmet is None else f"read where {unmet[0]}"
      unused.append(f"config.{name}={value!r} ({who})")
      continue
    raise ValueError(_refusal(config, name, value, unmet))
  if unused:
    logging.warning("settings of the config file that are not used: %s", "; ".join(unused))


def _refusal(config, name: str, value, unmet: tuple[Condition, ...] | None) -> str:
  if unmet is None:
    return (f"config.{name}={value!r} is not read by config.recipe={config.recipe!r} "
            f"({_listed(recipes_of(name))}); leave it out")
  here = " and ".join(f"config.{one.field}={at(config, one.field)!r}" for one in unmet)
  return (f"config.{name}={value!r} is not read: config.recipe={config.recipe!r} reads it where "
          f"{' and '.join(map(str, unmet))}, and {here}; {_remedy(name)}leave it out")


def _listed(recipes: list[str]) -> str:
  found = list(dict.fromkeys(recipes))
  if not found:
    return "no recipe of this version reads it"
  return f"{', '.join(found[:-1])} and {found[-1]} read it" if len(found) > 1 else f"{found[0]} reads it"


def _remedy(name: str) -> str:
  while name:
    if name in REMEDIES:
      return f"{REMEDIES[name]}, or "
    name = name.rpartition(".")[0]
  return ""
