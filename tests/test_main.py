"""The program from its command line: what newcomers get wrong, stopping and resuming, evaluating, writing."""

import json
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest

from atlas_jax import config as configs
from atlas_jax import main, modes, recipes, tree
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language import pretraining
from atlas_jax.state import Init
from tests import program, runs
from tests.program import refused

SMOKE = "--config=configs/memory_40m.py:smoke,pretrain"
STOP = "ATLAS_TEST_STOP"
SHOWN = {"eval__sample_tokens": 8, "monitor__report": True}  # What a run shows at its end, beside numbers.


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A folder of texts to train on."""
  return program.write_texts(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
  """The workdir of a run that was never stopped, and what it printed."""
  workdir = tmp_path_factory.mktemp("runs") / "trained"
  done = program.run(*program.tiny(texts, **SHOWN), f"--workdir={workdir}")
  assert done.code == 0, done.err
  return workdir, done


@pytest.fixture
def copied(trained, tmp_path):
  """A copy of the trained run, to be damaged."""
  return shutil.copytree(trained[0], tmp_path / "copied")


def contents(folder) -> dict:
  """Returns the bytes of every file below a folder."""
  return {path: path.read_bytes() for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


# What is added to a good command to train, and what the one line says.
WRONG = [
  ("--config.optim.stps=3", "there is no field config.optim.stps; did you mean 'config.optim.steps'?"),
  ("--config.lr=1e-3", "no field config.lr; did you mean 'config.optim.lr' or 'config.table.lr'?"),
  ("--config.zzz=3", "there is no field config.zzz; atlas_jax/defaults/ lists all fields"),
  ("--config.optim=3", "--config.optim is a group; set one of its fields, --config.optim.FIELD=VALUE"),
  ("--config.optim.steps=many", "--config.optim.steps=many: must be a whole number"),
  ("--config.optim.lr=None", "--config.optim.lr=None: must be a number"),
  ("--config.optim.lr=fast", "--config.optim.lr=fast: must be a number"),
  ("--config.optim.lr", "--config.optim.lr needs a value, --config.optim.lr=..."),
  ("--config.data.carry=maybe", "--config.data.carry=maybe: must be True or False"),
  ("--config.eval.max_tokens=x", "--config.eval.max_tokens=x: must be a whole number, or None"),
  ("--config.seed=-1", "config.seed=-1 must be at least 0"),
  ("--config.data.segment_len=40", "config.data.segment_len=40 is not a multiple of "
   "config.model.memory.chunk_size=16; nearest are 32 and 48"),
  ("--config.train.accumulate_steps=3", "config.data.batch_rows=8 is not a multiple of "
   "config.train.accumulate_steps=3; nearest are 6 and 9"),
  ("--config.data.batch_rows=12", "config.data.batch_rows=12 is not a multiple of config.mesh.data x fsdp = "
   "8; nearest are 8 and 16"),
  ("--config.eval.batch_rows=4", "config.eval.batch_rows=4 is not a multiple of config.mesh.data x fsdp = "
   "8; nearest are 8"),
  ("--config.mesh.tensor=3", "does not divide the 8 devices of this run"),
  ("--config.mesh.data=16", "needs 16 devices, this run has 8"),
  ("--config.model.memory.rule=titan", "config.model.memory.rule='titan' is unknown; .*titans"),
  ("--config.model.memory.options.deep=3", "rule 'delta' does not know deep; it knows momentum, "),
  ("--config.model.memory.options.feature_map=cell", "options.feature_map='cell' is unknown; known are none"),
  ("--config.model.dtype=float16", "config.model.dtype='float16' is unknown; did you mean 'bfloat16'?"),
  ("--config.model.vocab_size=300", "config.model.vocab_size=300 is not the vocabulary of "
   "config.data.tokenizer='byte', 257; set --config.model.vocab_size=257"),
  ("--config.recipe=memory", "config.recipe='memory' is unknown; .*memory_lm"),
  ("--config.recipe=memory.lm", "there is no module 'memory'; looked for in"),
  ("--config.optim.lr=0", "config.optim.lr=0.0 must be above 0"),
  ("--config.optim.schedule=linear", "config.optim.schedule='linear' is not known; choose one of"),
  ("--config.data.source=texts", "config.data.source='texts' is unknown; known sources: modular_arithmetic, "
   "recall_tasks, text"),
  ("--config.data.source=sft", "config.data.source='sft' gives no bytes_BT, which config.recipe='memory_lm' "
   "reads; known sources: modular_arithmetic, recall_tasks, text, or a"),
  ("--config.data.tokenizer=nowhere/tokenizer.json", "is neither a file nor a folder; it must be 'byte'"),
  ("--config.data.name=files", "config.data.name='files' needs config.data.path"),
  # Both need the network, and packages that may be missing; the line names what works without.
  ("--config.data.name=lm1b", "config.data.name='lm1b' is .*python_stdlib"),
  ("--config.data.name=hf:a/b", "config.data.name='hf:a/b' .*python_stdlib"),
  ("--seed=3", "--seed is for --mode=generate, this is "
   "--mode=train; the seed of training is --config.seed"),
  ("--process_id=1", "--coordinator is missing; several processes need all of --coordinator, --num_proc"),
  ("--workdirs=x", "there is no flag --workdirs; did you mean 'workdir'?"),
  ("--tokens=x", "--tokens=x: must be a positive integer"),
  ("train", "'train' is no flag; flags are written --name=value"),
]  # fmt: skip
# Whole commands but for --workdir.
WRONG_COMMANDS = [
  ("", "--config is missing, such as --config=configs/memory_40m.py:cpu"),
  ("--config=configs/memory_40.py", "there is no file .*; did you mean 'configs/memory_40m.py'?"),
  ("--config=configs/memory_40m.py:smok", "config argument 'smok' is unknown; did you mean 'smoke'?"),
  ("--config=configs/memory_40m.py:smoke=1", "smoke is a flag, write smoke alone"),
  ("--mode=test", "--mode=test: value should be one of <train|eval|generate|solve|export>"),
  ("--mode=eval", "holds no run: there is no .*config.json; train one first with --config="),
  ("--mode=generate", "holds no run: there is no .*config.json; train one first with --config="),
  ("--mode=generate --tokens=0", "--tokens=0: must be a positive integer"),
  ("--mode=generate --temperature=-1", "--temperature=-1: must be a non-negative number"),
  ("--mode=generate --top_k=0", "--top_k=0: must be a positive integer"),
  ("--mode=eval --prompt=x", "--prompt is for --mode=generate, this is --mode=eval"),
  ("--mode=eval --config=configs/memory_40m.py", "takes the config of the run in --workdir; leave out"),
]


def assert_refused(flags, words, workdir):
  """Runs a command that is to fail, and checks its line and that it leaves nothing in the workdir."""
  line = refused(program.run(f"--workdir={workdir}", *flags))
  assert re.search(words.replace("?", "[?]"), line), line
  assert not contents(workdir)


@pytest.mark.parametrize(("flag", "words"), WRONG)
def test_what_is_wrong_is_one_line_that_says_what_to_do(flag, words, tmp_path):
  good = [SMOKE, "--config.data.batch_rows=8", "--config.eval.batch_rows=8"]
  assert_refused([*good, flag], words, tmp_path / "run")


@pytest.mark.parametrize(("command", "words"), WRONG_COMMANDS)
def test_a_wrong_command_is_one_line_that_says_what_to_do(command, words, tmp_path):
  assert_refused(command.split(), words, tmp_path / "run")


def test_a_missing_workdir_is_named():
  assert "--workdir is missing: the directory of the run" in refused(program.run(SMOKE))


def test_a_workdir_that_cannot_be_written_is_named(texts, tmp_path):
  (tmp_path / "file").write_text("kept")
  line = refused(program.run(*program.tiny(texts), f"--workdir={tmp_path}/file/run"))
  assert f"--workdir={tmp_path}/file/run cannot be written" in line and "choose another" in line
  assert (tmp_path / "file").read_text() == "kept"


# A line of a config file, and what is said of it.
WRONG_LINES = [
  ("config.optim.stps = 3", ":5: there is no field config.stps; did you mean 'config.optim.steps'?"),
  ("config.optim.update(stps=3)", ":5: there is no field config.stps; did you mean 'config.optim.steps'?"),
  ("config.optim.steps = 'many'", ":5: "),
  ("config.optim.lr = None", "config.optim.lr=None must be a number"),
  ("config = config.zzz", ":5: there is no field config.zzz; atlas_jax/defaults/ lists all fields"),
]


@pytest.mark.parametrize(("line", "words"), WRONG_LINES)
def test_a_config_file_with_a_wrong_line_is_named(line, words, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(f"""from atlas_jax import config as base

def get_config(arg=None):
  config = base.default()
  {line}
  return config
""")
  said = refused(program.run(f"--config={file}", f"--workdir={tmp_path}/run"))
  assert words in said and (str(file) in said or "config.optim.lr=None" in said), said


def test_a_fault_of_a_config_file_keeps_its_traceback(tmp_path):
  (tmp_path / "mine.py").write_text("def get_config(arg=None):\n  return 1 // 0\n")
  done = program.run(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
  assert done.code == 1 and "Traceback" in done.err and "mine.py" in done.err


def test_a_config_file_without_get_config_is_named(tmp_path):
  (tmp_path / "mine.py").write_text("")
  line = refused(program.run(f"--config={tmp_path}/mine.py", "--workdir=x"))
  assert "mine.py defines no get_config" in line


def test_an_error_can_show_where_it_arose(tmp_path):
  done = program.run("--mode=eval", f"--workdir={tmp_path}", "--traceback")
  assert done.code == 1 and "Traceback" in done.err and done.err.splitlines()[-1].startswith("atlas_jax: ")


@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpu"])
def test_devices_that_are_not_here_are_named(platform, texts, tmp_path):
  flags = [*program.tiny(texts), f"--workdir={tmp_path}/run"]
  line = refused(program.spawn_main(*flags, JAX_PLATFORMS=platform))
  assert f"JAX_PLATFORMS={platform} asks for devices that are not here" in line
  assert "unset JAX_PLATFORMS to take what there is" in line


def test_the_program_says_how_it_is_used():
  done = program.spawn_main("--help")
  assert done.code == 0 and done.err == ""
  assert "--mode=generate --workdir=runs/quickstart" in done.out and "--temperature: " in done.out


def test_importing_the_program_loads_no_other_framework_and_no_part_it_may_not_need():
  code = "import sys, atlas_jax.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
  done = program.spawn(sys.executable, "-c", code)
  heavy = {*"torch tensorflow transformers datasets tensorflow_datasets grain matplotlib scipy".split()}
  assert done.code == 0 and not set(done.out.split()) & heavy


def test_a_run_leaves_what_is_promised(trained):
  workdir, done = trained
  summary = json.loads(done.out[done.out.index("{\n"):])  # After the text sample.
  assert json.loads((workdir / "summary.json").read_text()) == summary
  assert summary["steps"] == 6 and summary["resumed_from_step"] is None
  assert "\ndef " in done.out
  names = {path.name for path in workdir.iterdir()}
  assert {"config.json", "metrics.jsonl", "checkpoints", "report.png", "summary.json", "tokenizer"} <= names


def test_the_workdir_is_enough_to_build_the_model_again(trained):
  config = configs.load(trained[0])
  model = pretraining.model_of(config)
  tokens_BT = jnp.zeros((1, config.model.memory.chunk_size), jnp.int32)
  init = lambda: model.init(jax.random.key(0), tokens_BT, model.zero_state(1), doc_BT=tokens_BT)["params"]
  shapes = {f"params/{name}": list(leaf.shape) for name, leaf in tree.named_leaves(jax.eval_shape(init))}
  saved = json.loads((trained[0] / "checkpoints/6/meta/metadata").read_text())["leaves"]
  assert shapes == {name: leaf["shape"] for name, leaf in saved.items() if name.startswith("params/")}
  assert tokenizers.load(str(trained[0] / "tokenizer")).vocab_size == config.model.vocab_size


def test_eval_prints_one_json_object_and_writes_nothing(trained):
  before = contents(trained[0])
  done = program.run("--mode=eval", f"--workdir={trained[0]}")
  assert done.code == 0 and len(done.out.splitlines()) == 1
  found = json.loads(done.out)
  summary = json.loads((trained[0] / "summary.json").read_text())
  assert found["step"] == 6 and found["val/bits_per_byte"] == summary["val_bits_per_byte"]
  assert {"eval/memory_gain_emptied_nats", "val/loss_nats_by_position/000000-000063"} <= set(found)
  assert contents(trained[0]) == before


def test_what_is_measured_may_be_changed_for_eval(trained):
  done = program.run("--mode=eval", f"--workdir={trained[0]}", "--config.eval.max_tokens=256")
  assert json.loads(done.out)["val/tokens"] <= 256


def test_the_run_itself_may_not_be_changed_for_eval(trained):
  line = refused(program.run("--mode=eval", f"--workdir={trained[0]}", "--config.optim.lr=1"))
  assert "--config.optim.lr=1 belongs to the run in" in line


@pytest.mark.parametrize("setting", ["optim.steps=9", "train.idle_limit=9", "checkpoint.keep_last=1",
                                     "monitor.progress=False"])
def test_what_training_alone_reads_is_refused_for_eval(trained, setting):
  line = refused(program.run("--mode=eval", f"--workdir={trained[0]}", f"--config.{setting}"))
  assert f"--config.{setting} is read by --mode=train alone; leave it out" in line


def generated(workdir, *flags) -> str:
  """What the program writes in mode generate."""
  done = program.run("--mode=generate", f"--workdir={workdir}", "--tokens=12", *flags)
  assert done.code == 0 and done.err == "", done.err
  return done.out


def test_a_seed_gives_one_text(trained):
  texts = [generated(trained[0], "--prompt=def ", f"--seed={seed}") for seed in (1, 1, 2)]
  assert texts[0] == texts[1] != texts[2]
  assert all(text.startswith("def ") and text.endswith("\n") for text in texts)


def test_an_empty_prompt_starts_a_document(trained):
  assert len(generated(trained[0], "--temperature=0")) > 1


def test_a_cold_text_is_the_likeliest_one(trained):
  assert generated(trained[0], "--temperature=0", "--seed=4") == generated(trained[0], "--top_k=1")


def test_generating_needs_nothing_of_the_data(trained, copied):
  config = json.loads((copied / "config.json").read_text())
  del config["checksum"]
  config["data"].update(path="nowhere", tokenizer="nowhere")
  (copied / "config.json").write_text(json.dumps(config))
  assert generated(copied) == generated(trained[0])


MODES = ["train", "eval", "generate"]


def command(mode, texts, workdir) -> list[str]:
  """Flags that use a trained run in a mode."""
  flags = program.tiny(texts, **SHOWN) if mode == "train" else [f"--mode={mode}"]
  return [f"--workdir={workdir}", *flags]


@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_checkpoint_is_refused_and_the_newest_good_one_named(mode, texts, copied):
  largest = max((copied / "checkpoints/6").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-1])
  (copied / "summary.json").unlink()  # A finished run would be left as it is.
  before = contents(copied)
  line = refused(program.run(*command(mode, texts, copied)))
  assert f"{copied}/checkpoints/6 is damaged" in line
  assert f"the newest good one is {copied}/checkpoints/4: move 6 away to go on from there" in line
  assert contents(copied) == before


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_run_without_a_finished_checkpoint_is_named(mode, texts, copied):
  shutil.rmtree(copied / "checkpoints")
  line = refused(program.run(*command(mode, texts, copied)))
  assert f"{copied}/checkpoints holds no checkpoint; train first, or check --workdir" in line


def test_a_config_that_is_no_json_is_named(copied):
  (copied / "config.json").write_text("{")
  assert f"{copied}/config.json:1: not JSON" in refused(program.run("--mode=eval", f"--workdir={copied}"))


OTHER_SETTINGS = ["seed=1", "data.held_out_frac=0.3", "model.memory.chunk_size=16", "optim.lr=1.0"]


@pytest.mark.parametrize("field", OTHER_SETTINGS)
def test_a_run_of_other_settings_is_refused_and_kept(field, texts, trained):
  before = contents(trained[0])
  line = refused(program.run(*command("train", texts, trained[0]), f"--config.{field}"))
  name, value = field.split("=")
  assert "was written by a run with other settings" in line and f"config.{name} was " in line
  assert f", is {value}" in line and "use another --workdir, or the settings of that run" in line
  assert contents(trained[0]) == before


def test_a_config_left_by_a_start_that_failed_may_be_mended(texts, trained, tmp_path):
  shutil.copy(trained[0] / "config.json", tmp_path)
  config = configs.resolve(main.read_config(SMOKE.removeprefix("--config=")))
  modes.prepare(config, tmp_path)
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match="other settings"):
    modes.prepare(config, tmp_path)


@pytest.fixture
def stopped(texts, tmp_path):
  """Returns a function that trains with what `run` does, is stopped by a signal, and goes on to the end."""

  def train(run, signal_name):
    flags = [*program.tiny(texts), f"--workdir={tmp_path}/run"]
    return tmp_path / "run", run(*flags, **{STOP: f"3:{signal_name}:0"}), lambda: program.run(*flags)

  return train


def run_with(*flags, **environment):
  """Runs the program in this process with some variables set."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    return program.run(*flags)


STOPS = [(run_with, "SIGINT"), (program.spawn_main, "SIGTERM")]


@pytest.mark.parametrize(("run", "signal_name"), STOPS, ids=["SIGINT", "SIGTERM"])
def test_a_run_that_is_stopped_goes_on_as_if_it_never_was(run, signal_name, stopped, trained):
  workdir, first, go_on = stopped(run, signal_name)
  assert first.code == 75 and first.out == "", first.err
  assert f"stopped at step 4, saved in {workdir}/checkpoints; the same command goes on" in first.err
  assert list(program.losses(workdir)) == [1, 2, 3, 4]
  second = go_on()
  assert second.code == 0, second.err
  assert f"resumed from step 4 in {workdir}/checkpoints" in second.err
  assert program.losses(workdir) == program.losses(trained[0])
  assert json.loads((workdir / "summary.json").read_text())["resumed_from_step"] == 4


def test_a_reader_that_leaves_early_is_no_fault(trained):
  line = f"{sys.executable} -m atlas_jax.main --mode=generate --workdir={trained[0]} --tokens=200 | head -c 1"
  done = program.spawn("bash", "-c", line)
  assert len(done.out) == 1 and done.err == "", done.err


def test_full_devices_are_one_line():
  line = main.explain(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
  assert "out of device memory" in line and "lower config.data.batch_rows" in line


def test_an_error_of_a_library_is_no_refusal():
  with pytest.raises(TypeError) as error:
    jnp.zeros(2) + "a"
  assert main.explain(error.value) is None


def test_a_recipe_of_ones_own_with_other_parameters_has_no_text_sample(tmp_path):
  texts = runs.write_corpus(tmp_path / "text")
  config = runs.lm_config(texts, recipe="mine.recipe", eval__sample_tokens=4)
  other = recipes.Recipe(lambda rng: Init({"weights_K": jnp.zeros(3)}), None, None, {})
  assert modes.with_sample(config, other, runs.one_device()) is other
  alike = other._replace(init=recipes.load(runs.lm_config(texts), runs.one_device()).init)
  assert set(modes.with_sample(config, alike, runs.one_device()).evals) == {"sample"}
