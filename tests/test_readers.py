"""Settings that nobody reads are refused, and the table that says who reads what is what the recipes do."""
import jax
import pytest

from atlas_jax import command, modes, readers, recipes
from atlas_jax import config as configs
from tests import runs
from tests.recipes import test_contract

# Groups that the loop reads for every recipe.
LOOP = ("recipe", "seed", "optim", "train", "checkpoint", "mesh", "hosts", "monitor", "alerts", "upload")
# What only a longer run reads, or serving it: an extra, a server, a template's values, a folder, the length.
# Who reads traces is looked at with them, in data/traces/test_sources.py.
LATER = ("traces.", "rim", "teacher.endpoint", "eval.lm_eval", "eval.published", "serve", "vllm", "server",
         "sampler.kind", "data.template_values", "ranked.folder", "data.epochs", "puzzles.epochs",
         "puzzles.test_path")
# What code shared by recipes looks at, though it can be nothing but the default, or is replaced.
LOOKED_AT = {
  "memory_lm": {"data.chat_template", "lora.rank", "lora.path"},  # Of the sample at the end.
  "episodic": {"data.chat_template", "lora.rank", "lora.path"},
  "teacher": {"advantage.per_reward"},
  "sft": {"data.max_prompt_tokens"},  # Its prompts may be as long as a row.
}
PLAIN = "memory_40m.py:smoke,pretrain"
KINDS = ({}, {"model__kind": "memory"}, {"lora__rank": 2})
# Settings with which the recipes read all that they can.
LAYOUTS = {
  "memory_lm": ({}, {"data__source": "recall_tasks", "data__options": {"tasks": "mqar,text"}},
                {"eval__sample_tokens": 4},
                {"eval__tasks": "mqar,mad,niah,babilong,formal,last_word,key_value"},
                {"eval__accuracy": True}),
  "episodic": ({}, {"eval__sample_tokens": 4}, {"episode__read_target": 0.5, "episode__usage_weight": 1.0},
               {"eval__tasks": "mqar,mad,niah,babilong,formal,last_word"}, {"eval__accuracy": True}),
  "trm": ({}, {"puzzles__sampler": "original", "puzzles__epochs_per_iteration": 2}),
  "sft": (*KINDS, {"eval__sample_tokens": 4}),
  "grpo": (*KINDS, {"policy__kl_weight": 0.1, "policy__reference_every_steps": 2}),
  "teacher": (*KINDS, {"policy__kl_weight": 0.1, "policy__reference_every_steps": 2}),
  "gkd": tuple({"distill__on_policy_frac": 0.0, **fields} for fields in KINDS),
  "ranked": KINDS,
}


class Read:
  """A config, or a group of one, that notes which of its fields are read."""

  def __init__(self, values, found, prefix=""):
    self.__dict__.update(_values=values, _found=found, _prefix=prefix)

  def __getitem__(self, name):
    value, full = self._values[name], self._prefix + name
    if hasattr(value, "keys") and not isinstance(value, Read):
      return Read(value, self._found, f"{full}.") if full not in configs.OPTIONS else self._note(full, value)
    return self._note(full, value)

  def _note(self, full, value):
    self._found.add(full)
    return value

  def __getattr__(self, name):
    return self[name]

  def __setitem__(self, name, value):
    self._values[name] = value

  __setattr__ = __setitem__

  def __iter__(self):
    return iter(self._values)

  def __len__(self):
    return len(self._values)

  def __contains__(self, name):
    return name in self._values

  def keys(self):
    return self._values.keys()

  def items(self):
    return [(name, self[name]) for name in self._values]

  def values(self):
    return [self[name] for name in self._values]

  def update(self, *others, **more):
    self._values.update(*others, **more)

  def to_dict(self):
    return Read(self._values.to_dict() if hasattr(self._values, "to_dict") else self._values, self._found,
                self._prefix)

  def as_configdict(self):
    return Read(self._values.as_configdict(), self._found, self._prefix)

  def copy_and_resolve_references(self):
    return Read(self._values.copy_and_resolve_references(), self._found, self._prefix)


def reads_of(config) -> set[str]:
  """The fields that are read when the recipe is made, and when it gives a batch and a loss."""
  found: set[str] = set()
  read, mesh = Read(config, found), runs.one_device()
  recipe = modes.with_sample(read, recipes.load(read, mesh), mesh)
  start = jax.eval_shape(recipe.init, jax.random.key(0))
  # Their sources would have to sample; what their loss reads, making it has read.
  if config.recipe not in ("grpo", "teacher"):
    batch = recipe.source.next(None)
    test_contract.outcome(recipe, start, batch)
    if recipe.update.tables is not None:
      given = start.tables, batch, start.carry
      rows = jax.eval_shape(recipe.update.tables.rows, *given)
      jax.eval_shape(lambda *args: recipe.update.tables.update(*args, scale=1.0), *given, rows)
  return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Texts to train on."""
  return runs.write_corpus(tmp_path_factory.mktemp("readers") / "text")


def configs_of(recipe, corpus) -> list:
  """Small configs of a recipe that together read all that it can."""
  found = [test_contract.config_of(recipe, corpus, **fields) for fields in LAYOUTS[recipe]]
  if recipe == "trm":
    found.append(runs.changed(command.read_config("configs/trm_arc1.py:smoke"), {"eval__batch_rows": 4}))
  return found


@pytest.mark.parametrize("recipe", recipes.names())
def test_the_table_says_what_a_recipe_reads(recipe, corpus):
  read = set().union(*(reads_of(config) for config in configs_of(recipe, corpus)))
  known = {name for name in (*configs.FIELDS, *configs.OPTIONS) if not name.startswith(LOOP)}
  listed = {name for name in known if recipe in readers.recipes_of(name)}
  missing = read & known - listed - LOOKED_AT.get(recipe, set()) - set(readers.OFF)
  assert not missing, f"atlas_jax/readers.py does not name {recipe} as a reader of {sorted(missing)}"
  idle = {name for name in listed - read if not name.startswith(LATER)}
  assert not idle, f"atlas_jax/readers.py says that {recipe} reads {sorted(idle)}, and it does not"


def test_every_field_has_readers():
  without = [name for name in configs.FIELDS if readers.readers_of(name) is None]
  assert not without, f"atlas_jax/readers.py has no entry for {without}"


def test_the_table_names_fields_groups_and_recipes_that_are_there():
  names = {*configs.FIELDS, *configs.OPTIONS}
  groups = {name[:at] for name in names for at, char in enumerate(name) if char == "."}
  assert set(readers.READERS) <= names | groups
  for readers_ in readers.PARSED.values():
    assert {recipe for reader in readers_ for recipe in reader.recipes} <= set(recipes.names())
    assert all(one.field in configs.FIELDS for reader in readers_ for one in reader.conditions)


# --- what is refused ---

REFUSED = [
  (PLAIN, "rewards=nonsense", "config.rewards='nonsense' is not read by config.recipe="
   "'memory_lm' [(]sft, grpo and gkd read it[)]; leave it out"),
  (PLAIN, "rewards=correct", "config.rewards='correct' is not read by"),  # Even the default.
  (PLAIN, "data.path=texts", "config.data.path='texts' is not read: config.recipe="
   "'memory_lm' reads it where config.data.name is other than python_stdlib or hf:[*], and config.data.name="
   "'python_stdlib'; set config.data.name=files to read it, or leave it out"),
  (PLAIN, "data.files=x.jsonl", "is not read by config.recipe='memory_lm'"),
  (PLAIN, "decoder.width=64", "is not read by config.recipe='memory_lm'"),
  (PLAIN, "eval.collapse_evals=2", "is not read by config.recipe='memory_lm' [(]episodic reads it[)]"),
  (PLAIN, "trm.width=64", "is not read by config.recipe='memory_lm' [(]trm reads it[)]"),
  (PLAIN, "optim.decay_frac=0.3", "where config.optim.schedule is wsd, and config.optim"),
  ("trm_sudoku.py:smoke", "data.held_out_frac=0.2", "is not read by config.recipe='trm'"),
  ("trm_sudoku.py:smoke", "puzzles.canvas=12", "where config.puzzles.name is arc[*] or files, and "),
  ("trm_sudoku.py:smoke", "puzzle_eval.halt_threshold=1.0", "where config.puzzle_eval.mode is halting"),
  ("sft.py:smoke", "advantage.kind=ranked", "not read by config.recipe='sft' [(]grpo and teacher read it[)]"),
  ("sft.py:smoke", "model.width=64", "where config.model.kind is memory, and config.model.kind='decoder'"),
  ("sft.py:smoke,memory", "decoder.width=64", "where config.model.kind is decoder, and config.model.kind="),
  ("sft.py:smoke", "lora.alpha=8", "where config.lora.rank is set, and config.lora.rank=None; set"),
  ("sft.py:smoke", "data.epochs=2", "where config.optim.steps=None, and config.optim.steps=4"),
  ("grpo_arithmetic.py:smoke", "sft.loss=dft", "is not read by config.recipe='grpo' [(]sft reads it[)]"),
  ("grpo_arithmetic.py:smoke", "vllm.port=8000", "where config.sampler.kind is vllm"),
  ("grpo_arithmetic.py:smoke", "server.url=http://x", "where config.sampler.kind is server"),
  ("gkd.py:smoke", "policy.kl_weight=0.1", "read by config.recipe='gkd' [(]grpo and teacher read it[)]"),
  ("gkd.py:smoke", "rollout.truncated=drop", "read by config.recipe='gkd' [(]grpo and teacher read it[)]"),
  ("atlas_ranked.py:smoke", "sampler.top_k=4", "is not read by config.recipe='ranked'"),
  ("atlas_ranked.py:smoke", "distill.beta=0.1", "is not read by config.recipe='ranked' [(]gkd reads it[)]"),
  # Fields that another one switches off.
  (f"{PLAIN},baseline", "model.memory.rule=titans", "memory_mix is context or gate or layer or"),
  (f"{PLAIN},baseline", "model.gate_floor=0.1", "config.model.memory_mix is other than"),
  (PLAIN, "model.memory_mix=conv,model.memory.rule=titans", "mix is context or"),
  (PLAIN, "model.persistent_tokens=2", "config.model.memory_mix is context, and"),
  (PLAIN, "model.inner.rate=2", "where config.model.memory_mix is e2e, and config"),
  (f"{PLAIN},control=static", "model.memory.write_rate_max=0.9", "memory.writes is True, and con"),
  (f"{PLAIN},control=wide", "eval.gain_max_tokens=64", "model.memory_mix is context or e2e"),
  (PLAIN, "model.ngram_embed.table_rows=8", "where config.model.ngram_embed.max_n is set"),
  ("sft.py:smoke", "data.transform=repeat", "is not read by config.recipe='sft' [(]memory_lm and episodic"),
  (PLAIN, "eval.sample_prompt=x,eval.sample_tokens=0", "config.eval.sample_tokens is other"),
  (PLAIN, "data.source=recall_tasks,data.group_size=3", "is not read by config.recipe="),
  (PLAIN, "data.source=recall_tasks,data.transform=repeat", "data.source is text"),
  (PLAIN, "data.options.tasks=mqar", "config.data.source is recall_tasks or modular_arithmetic, and config."),
  (PLAIN, "window.least_tokens=4", "where config.window.kind is other than full, and config."
   "window.kind='full'; set config.window.kind=random or delayed, or leave it out"),
  (PLAIN, "window.kind=random,window.least_tokens=4,window.delay_steps=9", "kind is delayed"),
  (PLAIN, "model.memory_mix=context,window.drop_frac=0.5", "conv or e2e or gate or layer or"),
  (f"{PLAIN},mix=only", "window.drop_frac=0.5", "memory_mix is conv or e2e or gate or layer or"),
  ("sft.py:smoke", "data.source=prompts", "config.data.source='prompts' is not read by config.recipe='sft' "
   "[(]memory_lm and episodic read it[)]"),
  ("sft.py:smoke", "window.kind=random", "is not read by config.recipe='sft' [(]memory_lm and episodic"),
  (PLAIN, "model.path=x,model.memory.retention_init=0.9", "where config.model.path=None"),
  (PLAIN, "checkpoint.keep_best=0,checkpoint.best_mode=max", "checkpoint.keep_best"),
  ("grpo_arithmetic.py:smoke", "policy.sampler_high=2", "where config.policy.sampler_correction is set"),
  ("grpo_arithmetic.py:smoke", "advantage.kind=centered,advantage.epsilon=0.1", "normalized or batch"),
  ("grpo_arithmetic.py:smoke", "advantage.per_reward=True,advantage.kind=ranked", "advantage.per_reward is "),
  ("grpo_arithmetic.py:smoke", "sampler.kind=vllm,vllm.url=http://x,vllm.port=8000", "where config.vllm.url"),
  ("gkd.py:smoke", "distill.alpha=0.5,distill.beta=0.1", "where config.distill.alpha=None"),
  ("gkd.py:smoke", "distill.on_policy_frac=1,distill.off_policy_source=teacher",
   "config.distill.on_policy_frac is other"),
  ("gkd.py:smoke", "distill.teacher_template=student", "where config.data.chat_template is set"),
  ("atlas_ranked.py:smoke", "ranked.kl_weight=0.1", "where config.ranked.objective is group_relative"),
  ("atlas_ranked.py:smoke", "ranked.objective=group_relative,ranked.anchored=1", "objective is ranked"),
  ("atlas_ranked.py:smoke", "decoder.rope_base=500", "where config.decoder.learned_positions=None"),
  ("trm_sudoku.py:smoke", "trm.rope_base=500", "config.trm.mixer is attention"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "setting", "words"), REFUSED)
def test_a_setting_that_is_not_read_is_refused(file, setting, words):
  overrides = dict(one.split("=", 1) for one in setting.split(","))
  with pytest.raises(ValueError, match=words):
    command.read_config(f"configs/{file}", overrides)


def test_a_setting_of_a_config_file_is_refused_as_well(tmp_path):
  file = tmp_path / "mine.py"
  lines = ["from configs import memory_40m", "def get_config(arg=None):",
           "  config = memory_40m.get_config('smoke')", "  config.data.path = 'texts'", "  return config"]
  file.write_text("\n".join(lines))
  with pytest.raises(ValueError, match="config.data.path='texts' is not read"):
    command.read_config(str(file))


def test_what_a_flag_makes_unused_is_named_once(caplog):
  config = command.read_config("configs/sft.py", {"optim.steps": "100"})
  assert config.optim.steps == 100
  assert caplog.text.count("config.data.epochs=1 (read where config.optim.steps=None)") == 1


def test_what_another_recipe_makes_unused_is_named_once(caplog):
  config = command.read_config("configs/memory_40m.py:cpu", {"recipe": "sft", "model.kind": "memory"})
  assert config.recipe == "sft"
  assert "config.eval.gain_max_tokens=32768 (memory_lm and episodic read it)" in caplog.text


def test_settings_of_adapters_are_read_where_a_folder_of_adapters_is_given_too():
  config = command.read_config("configs/sft.py", {"lora.path": "folder", "lora.alpha": "8"})
  assert config.lora.alpha == 8  # Compared with what the folder says when it is opened.


def test_what_asks_for_nothing_is_let_through():
  assert command.read_config("configs/trm_sudoku.py:smoke", {"eval.sample_tokens": "0"}).recipe == "trm"


def test_a_recipe_of_ones_own_may_read_every_field():
  overrides = {"recipe": "experiments.mine.recipe", "rewards": "nonsense", "trm.width": "64"}
  assert command.read_config("configs/memory_40m.py:smoke,pretrain", overrides).rewards == "nonsense"


def test_a_source_of_ones_own_may_read_every_field_of_the_data():
  overrides = {"data.source": "experiments.mine.source", "data.path": "x", "data.group_size": "3"}
  assert command.read_config("configs/memory_40m.py:smoke,pretrain", overrides).data.group_size == 3


def test_a_run_that_holds_what_nobody_reads_is_opened(tmp_path):
  config = command.read_config("configs/memory_40m.py:smoke,pretrain")
  config.rewards, config.decoder.width = "nonsense", 64
  configs.save(configs.resolve(config), tmp_path)
  assert modes.config_of_run(str(tmp_path), {"eval.max_tokens": "64"}).rewards == "nonsense"
  with pytest.raises(ValueError, match="config.eval.grader='places' is not read by config.recipe="):
    modes.config_of_run(str(tmp_path), {"eval.grader": "places"})
