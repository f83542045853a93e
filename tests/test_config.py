"""The config: every field has a type, a working value and a comment; what does not fit is refused by name."""

import ast
import json
import pathlib

import ml_collections
import pytest

from atlas_jax import command, defaults, main
from atlas_jax import config as configs

pytestmark = pytest.mark.core


def changed(**fields) -> ml_collections.ConfigDict:
  """The default with some fields set; __ stands for dots."""
  config = configs.default()
  for name, value in fields.items():
    group, _, last = name.replace("__", ".").rpartition(".")
    (configs.at(config, group) if group else config)[last] = value
  return config


def test_the_default_is_a_config_that_works():
  config = configs.resolve(configs.default())
  assert isinstance(config, ml_collections.FrozenConfigDict)
  assert config.data.align_tokens == config.model.memory.chunk_size


def test_every_field_is_explained_beside_its_value():
  files = sorted(pathlib.Path(defaults.__file__).parent.glob("*.py"))
  lines = [line for file in files for line in file.read_text().splitlines()]
  for name in configs.FIELDS:
    last = name.rpartition(".")[2]
    found = [at for at, line in enumerate(lines) if f'"{last}": ' in line]
    assert any(lines[at].partition("  # ")[2] or lines[at - 1].strip().startswith("# ") for at in found), name


def test_a_resolved_config_cannot_be_changed():
  with pytest.raises(AttributeError):
    configs.resolve(configs.default()).optim.steps = 3


def test_resolving_leaves_the_config_itself_as_it_was():
  config = configs.default()
  configs.resolve(config)
  assert config == configs.default()


# Fields and what is said of them.
REFUSED = [
  (dict(data__segment_len=100), "config.data.segment_len=100 is not a multiple of "
   "config.model.memory.chunk_size=64; nearest are 64 and 128"),
  (dict(data__segment_len=32), "nearest are 64"),
  (dict(data__align_tokens=96, data__segment_len=192), "config.data.align_tokens=96 is not a multiple of"),
  (dict(data__align_tokens=128, data__segment_len=192), "segment_len=192 is not a multiple of config.data"),
  (dict(train__accumulate_steps=5), "batch_rows=16 is not a multiple of config.train.accumulate_steps=5"),
  (dict(optim__steps=None), "config.optim.steps=None takes the run's length from config.puzzles.epochs"),
  (dict(optim__lr=None), "config.optim.lr=None must be a number"),
  (dict(trm__width=100), "trm.width=100 is not a multiple of 2 [*] config.trm.heads = 16; nearest are"),
  (dict(puzzles__seed=2**32), "config.puzzles.seed=4294967296 must be .* below 2[*][*]32"),
  (dict(trm__expansion=-1.0), "config.trm.expansion=-1.0 must be above 0"),
  (dict(puzzle_eval__halt_threshold=float("nan")), "halt_threshold=nan must be a finite number"),
  (dict(trm__row_width=9000), "row_width=9000 does not fit into config.trm.n_prefix=16 positions of"),
  (dict(trm__row_width=0), "config.trm.n_prefix=16 holds puzzle rows, and config.trm.row_width=0 has none"),
  (dict(trm__variant="trn"), "config.trm.variant='trn' is unknown; did you mean 'trm'?"),
  (dict(puzzles__n_train=0), "config.puzzles.n_train=0 must be at least 1"),
  (dict(data__carry=None), "config.data.carry=None must be True or False"),
  (dict(optim__lr=None), "config.optim.lr=None must be a number"),
  (dict(model__memory__remat_chunks=3), "remat_chunks=3 does not divide the 32 chunks of a segment"),
  (dict(model__memory__conv_taps=1), "config.model.memory.conv_taps=1 must be at least 2"),
  (dict(model__memory__chunk_size=2, model__memory__shift=False), "chunk_size=2 must .* conv_taps - 1 = 5"),
  (dict(model__memory__chunk_size=3), "at least conv_taps - 1 [+] shift = 6"),
  (dict(model__memory__value_source="key"), "value_source='key' is unknown; known are input, token"),
  (
    dict(model__memory__qkv_source="attention", model__memory__heads=4),
    "config.model.memory.heads=4 must be 8, that of attention .* shares its projections",
  ),
  (
    dict(
      model__memory__qkv_source="attention", model__memory__value_source="input", model__memory__value_dim=32
    ),
    "config.model.memory.value_dim=32 must be 64",
  ),
  (dict(model__memory_layers="0,9"), "memory_layers='0,9' must name different blocks from 0 to 7"),
  (dict(model__memory_layers="1,1"), "memory_layers='1,1' must name different blocks"),
  (dict(model__memory_layers=""), "memory_layers='' must name different blocks"),
  (dict(model__heads=0), "config.model.heads=0 must be at least 1"),
  (dict(data__threads=-1), "config.data.threads=-1 must be at least 0"),
  (dict(data__bad_input_frac=1.5), "config.data.bad_input_frac=1.5 must be from 0 to 1"),
  (dict(model__memory__retention_init=1.0), "retention_init=1.0 must be above 0 and below 1"),
  (dict(model__memory__write_rate_init=0.2, model__memory__write_rate_max=0.1),
   "write_rate_init=0.2 must be above 0 and below"),
  (dict(model__memory__write_rate_max=0.0), "write_rate_max=0.0 must be above 0"),
  (dict(model__gate_floor=1.0), "config.model.gate_floor=1.0 must be at least 0 and below 1"),
  (dict(model__width=520), "model.width=520 is not a multiple of 2 . config.model.heads=16 .*512 and 528"),
  (dict(model__memory_mix="gated"), "config.model.memory_mix='gated' is unknown; did you mean 'gate'?"),
  (dict(model__memory__writes=False, model__memory__initial="zero"), "writes=False reads the start"),
  (dict(model__ngram_embed__max_n=1), "config.model.ngram_embed.max_n=1 must be at least 2"),
  (dict(data__transform="repeated"), "config.data.transform='repeated' is unknown; did you mean 'repeat'?"),
  (dict(eval__transform="shuffle"), "config.eval.transform='shuffle' is unknown; did you mean"),
  (dict(model__remat="all"), "config.model.remat='all' is unknown; known are block, dots, none"),
  (dict(model__memory__impl="palas"), "config.model.memory.impl='palas' is unknown; did you mean 'pallas'?"),
  (dict(window__kind="short"), "config.window.kind='short' is unknown; known are delayed, full, random"),
  (dict(window__kind="random"), "least_tokens=None, and config.window.kind='random' needs it: set it"),
  (dict(window__kind="delayed", window__least_tokens=4), "delay_steps=None, and config.window.kind"),
  (dict(window__least_tokens=4), "least_tokens=4, and config.window.kind='full' does not read it: leave"),
  (dict(window__kind="random", window__least_tokens=4, window__delay_steps=9), "delay_steps=9, and config."),
  (dict(window__kind="random", window__least_tokens=0), "config.window.least_tokens=0 must be at least 1"),
  (dict(window__drop_frac=1.5), "config.window.drop_frac=1.5 must be from 0 to 1"),
  (dict(window__kind="random", window__least_tokens=256), "least_tokens=256 must be below config.model.wind"),
  (dict(window__kind="random", window__least_tokens=400), "below config.model.window_tokens=256: config.win"),
  (dict(window__kind="delayed", window__least_tokens=4, window__delay_steps=1_000),
   "delay_steps=1000 must be below config.optim.steps=1000, or no update has the window of the model"),
  (dict(seed=2**32), "config.seed=4294967296 must be .* below"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_does_not_fit_is_refused(fields, words):
  with pytest.raises(ValueError, match=words.replace("?", "[?]")):
    configs.resolve(changed(**fields))


def test_a_field_that_was_smuggled_in_is_refused():
  config = configs.default().unlock()
  config.optim.stps = 3
  with pytest.raises(ValueError, match="no field config.optim.stps; did you mean 'config.optim.steps'"):
    configs.resolve(config)


@pytest.mark.parametrize("name", sorted(configs.FIELDS))
def test_every_field_can_be_set_from_text_to_what_it_is(name):
  config, value = configs.default(), configs.at(configs.default(), name)
  command.override(config, name, str(value))
  assert configs.at(config, name) == value


TEXTS = [
  ("optim.clip_norm", "None", None), ("optim.lr", "1", 1.0), ("data.limit_bytes", "1_000", 1000),
  ("data.path", "None", None), ("data.path", "a,b", "a,b"), ("data.carry", "false", False),
  ("model.memory.options.depth", "3", 3), ("model.memory.options.activation", "gelu", "gelu"),
  ("model.memory.options.surprise_max", "None", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), TEXTS)
def test_text_becomes_a_value_of_the_fields_type(name, text, value):
  config = configs.default()
  command.override(config, name, text)
  found = configs.at(configs.resolve(config), name)
  assert found == value and type(found) is type(value)


SPELLINGS = [["--config.optim.lr=2"], ["--config.optim.lr", "2"], ["-config.optim.lr=2"]]


@pytest.mark.parametrize("words", SPELLINGS)
def test_an_override_may_stand_anywhere(words):
  asked, overrides = main.parse(["main", *words, "--config=configs/x.py", "--workdir", "w"])
  assert overrides == {"optim.lr": "2"} and asked.config == "configs/x.py" and asked.workdir == "w"


def test_an_argument_of_a_config_is_read_by_the_type_of_its_default():
  parsed = configs.parse_arg("cpu,width=32,rule=delta", cpu=False, smoke=False, width=8, rule="titans")
  assert parsed.to_dict() == dict(cpu=True, smoke=False, width=32, rule="delta")


WRONG_ARGUMENTS = [
  ("width=wide", "config argument 'width=wide' must be a whole number"),
  ("width", "config argument 'width' needs a value"), ("cpu=1", "cpu is a flag, write cpu alone"),
  ("with=3", "config argument 'with' is unknown; did you mean 'width'"),
]  # fmt: skip


@pytest.mark.parametrize(("arg", "words"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named(arg, words):
  with pytest.raises(ValueError, match=words):
    configs.parse_arg(arg, cpu=False, width=8)


def test_a_name_like_no_other_lists_the_known_ones():
  assert configs.nearest("zzz", ["b", "a"]) == "known are a, b"


def test_what_was_saved_is_loaded(tmp_path):
  config = configs.resolve(changed(model__memory__options={"depth": 3}, optim__clip_norm=None))
  configs.save(config, tmp_path)
  assert configs.load(tmp_path).to_dict() == config.to_dict()
  assert configs.load(tmp_path).model.memory.options.to_dict() == {"depth": 3}  # The default's do not join.


def edit(workdir, change):
  """Saves the default and changes the file by hand."""
  configs.save(configs.resolve(configs.default()), workdir)
  saved = json.loads((workdir / "config.json").read_text())
  del saved["checksum"]  # What is changed by hand is taken as it is without it.
  change(saved)
  (workdir / "config.json").write_text(json.dumps(saved))


CHANGES = [
  (lambda saved: saved["optim"].update(old=1), "there is no field config.optim.old"),
  (lambda saved: saved["optim"].update(steps="many"), "config.optim.steps='many' must be a whole number"),
  (lambda saved: saved["optim"].update(lr=None), "config.optim.lr=None must be a number"),
  (lambda saved: saved.update(optim=3), "there is no field config.optim"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_config_of_another_version_is_refused(change, words, tmp_path):
  edit(tmp_path, change)
  with pytest.raises(ValueError, match=f"config.json is not of this version of the program: .*{words}"):
    configs.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff"])
def test_a_damaged_config_is_named(text, tmp_path):
  (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(ValueError, match="config.json.* it is damaged: restore it"):
    configs.load(tmp_path)


def test_a_field_added_since_has_its_default(tmp_path):
  edit(tmp_path, lambda saved: saved["eval"].pop("baselines"))
  assert configs.load(tmp_path).eval.baselines == configs.default().eval.baselines


def test_the_seed_the_data_and_the_model_may_not_change_between_runs():
  fixed = {name for name in configs.FIELDS if not configs.is_free(name)}
  assert {name for name in fixed if name.startswith("optim.")} == {
    f"optim.{name}" for name in configs.default().optim if name != "steps"}  # fmt: skip
  free = {name for name in configs.FIELDS if name.startswith(("data.", "model.", "seed", "recipe"))} - fixed
  data = {f"data.{name}" for name in ("threads", "cache_dir", "download", "bad_input_frac")}
  assert free == data | {"model.scan_unroll", "model.remat", "model.memory.remat_chunks", "model.memory.impl"}
  assert configs.is_free("mesh.tensor") and not configs.is_free("model.memory.options.depth")


def test_another_length_is_let_through_with_a_word_on_what_follows(tmp_path, caplog):
  configs.save(configs.resolve(configs.default()), tmp_path)
  with caplog.at_level("INFO", logger="absl"):
    configs.check_same(configs.resolve(changed(optim__steps=2_000)), tmp_path)
  assert "config.optim.steps was 1000, is 2000; from here on the learning rate follows" in caplog.text


def test_other_settings_are_refused_and_named(tmp_path):
  configs.save(configs.resolve(configs.default()), tmp_path)
  with pytest.raises(ValueError, match="model.depth was 8, is 6; config.seed was 0, is 1; use another"):
    configs.check_same(configs.resolve(changed(model__depth=6, seed=1)), tmp_path)


def test_no_field_is_read_by_nobody():
  files = pathlib.Path(configs.__file__).parent.rglob("*.py")
  nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
  names = {node.arg for node in nodes if isinstance(node, ast.arg)}  # Groups are splatted into them.
  names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
  names |= {ast.unparse(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}
  # Tasks of recall are handed their options as a mapping, and take them by name.
  taken = [node for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)]
  options = ("setting.options", "options", "found")  # As tasks of recall call what they are handed.
  names |= {node.slice.value for node in taken if ast.unparse(node.value) in options}
  # Judges are switched on by their names, and a test of judges/settings.py turns each off.
  judges = {name for name in configs.FIELDS if name.startswith("rim.active_judges.")}
  assert {name.rpartition(".")[2] for name in {*configs.FIELDS} - judges} <= names


def test_copies_of_a_resolved_config_do_not_meet():
  config = configs.resolve(configs.default())
  first, second = configs.unfrozen(config), configs.unfrozen(config)
  first.data.tokenizer = "elsewhere"
  assert second.data.tokenizer == configs.unfrozen(config).data.tokenizer == config.data.tokenizer == "byte"


def test_a_resolved_config_is_changed_by_its_copy_alone():
  root = pathlib.Path(configs.__file__).parent
  found = [file.name for file in root.rglob("*.py") if "as_configdict" in file.read_text()]
  assert found == ["config.py"]
