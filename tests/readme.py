"""The commands of README, guides and notebooks, and how the tests treat each.

Every command of the README's `sh` blocks, those inside its text, and those of the notebooks' last cells has
an entry in COMMANDS: flags that shorten it, or the reason why it is not run. A command without one fails.
Commands of docs/ that have an entry are run as well; of the others test_docs.py checks what can be checked
without running them.
"""

import json
import pathlib
import re
from typing import NamedTuple

from tests.pages import DOCS, ROOT, blocks, commands_of, inline_commands

README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PORT = "PORT"  # In flags: stands for a free port.


class How(NamedTuple):
  """How a command is treated."""

  flags: str = ""  # Appended: fewer steps and rows; nothing of it changes what is exercised.
  needs: tuple[str, ...] = ()  # Commands whose results it uses.
  why: str = ""  # Why it is not run here.
  asks: str = ""  # Of a server: the path that is asked for before it is stopped.


NETWORK = How(why="network: it fetches packages; the extras that it names are checked")
LEARN = "--config.eval.max_problems=8 --config.train.eval_every_steps=None"
PLAIN = ("--config.optim.steps=3 --config.data.batch_rows=4 --config.data.limit_bytes=1000000 "
         "--config.data.held_out_frac=0.2 --config.eval.max_tokens=2048 --config.eval.sample_tokens=8")
TEXT = f"{PLAIN} --config.eval.task_samples=2 --config.eval.episode_distances=256"
MEMORY = f"{TEXT} --config.eval.gain_max_tokens=1024"  # Of a model that has one.
PUZZLES = "--config.optim.steps=2 --config.data.batch_rows=8 --config.eval.batch_rows=8"
TRACES = "python scripts/traces.py"
IMPORTED = (f"{TRACES} import --database-url=sqlite:///traces.db --input=traces.jsonl",)
UNDRAWN = "--config.monitor.tensorboard=False --config.monitor.report=False --config.eval.sample_tokens=0"
JUPYTER = f"--no-browser --allow-root --port={PORT} --IdentityProvider.token="
MAIN, QUICKSTART = "python -m atlas_jax.main", "bash scripts/quickstart.sh"
SUDOKU = f"{MAIN} --config=configs/trm_sudoku.py:4x4 --workdir=runs/sudoku4"
ARC = f"{MAIN} --config=configs/trm_arc1.py:cpu --workdir=runs/arc_cpu"
GRPO = f"{MAIN} --config=configs/grpo_arithmetic.py:cpu --workdir=runs/grpo"
SFT = f"{MAIN} --config=configs/sft.py:cpu --workdir=runs/sft_cpu"
# Of the guides: a model drawn here is tuned on chats, and goes on from there.
SFT_CHAT = (f"{MAIN} --config=my_sft.py --config.data.files=FILE.jsonl --config.data.chat_template=my_chat "
            "--config.optim.steps=150 --workdir=runs/sft_chat")
GRPO_OWN = (f"{MAIN} --config=configs/grpo.py --config.model.path=runs/sft_chat "
            "--config.data.files=QUESTIONS.jsonl --config.rewards=correct=1,my_rewards.py:short=0.1 "
            "--config.data.batch_rows=16 --config.data.group_size=4 --config.sampler.max_tokens=16 "
            "--config.train.accumulate_steps=1 --config.optim.lr=1e-4 --workdir=runs/grpo_own")
SUMS = "python -m atlas_jax.runtime.worlds.arithmetic 128 > tasks.jsonl"
RUN = "atlas run --config=configs/runtime.py:arithmetic --tasks=tasks.jsonl --concurrency=64 --json"
STORE = "--database-url=sqlite:///.atlas/atlas.db"
APPROVE = f'arc-atlas approve --where status=succeeded --reviewer=ada --note="looked at" {STORE}'
EXPORT = f"arc-atlas export --output=agent.jsonl {STORE}"
TRAIN = ("atlas train --export-path=agent.jsonl --output-dir=results/agent "
         "--config=configs/teacher_rcl.py:cpu "
         "--override teacher.shown=attempt")
DEPLOY = "atlas deploy results/agent --canary=0.5"
BLOCK = How(why="long: test_the_block_of_the_runtime_makes_an_agent_better runs the block in its order")
STDLIB = "python scripts/prepare_text.py --train_vocab_size=32000 --tokenizer=runs/python_stdlib_32k"

COMMANDS = {
  QUICKSTART: How(MEMORY),
  "source .venv/bin/activate": How(),
  f'{MAIN} --mode=generate --workdir=runs/quickstart --prompt="def " --tokens=200': How(needs=(QUICKSTART,)),
  f"{MAIN} --mode=eval --workdir=runs/quickstart": How(needs=(QUICKSTART,)),
  "tensorboard --logdir runs/quickstart/tensorboard": How(
    f"--port={PORT}", needs=(QUICKSTART,), asks="data/runs"
  ),
  'pip install -e ".[notebooks]"': NETWORK,
  "jupyter notebook notebooks/quickstart.ipynb": How(
    JUPYTER, asks="api/contents/quickstart.ipynb?content=0"
  ),
  "jupyter notebook notebooks/trm_sudoku.ipynb": How(
    JUPYTER, asks="api/contents/trm_sudoku.ipynb?content=0"
  ),
  "jupyter notebook notebooks/own_rule.ipynb": How(
    JUPYTER, asks="api/contents/own_rule.ipynb?content=0"
  ),
  "jupyter notebook notebooks/grpo_sums.ipynb": How(
    JUPYTER, asks="api/contents/grpo_sums.ipynb?content=0"
  ),
  SUDOKU: How(f"{PUZZLES} --config.puzzles.n_train=16 --config.puzzles.n_test=8"),
  'pip install -e ".[arc]"': NETWORK,
  ARC: How(f"{PUZZLES} --config.puzzles.max_tasks=3 --config.puzzle_eval.max_examples=8"),
  f"{MAIN} --mode=solve --workdir=runs/arc_cpu --task=TASK.json --seconds=60": How(
    "--seconds=1 --augmentations=2", needs=(ARC,)
  ),
  'pip install -e ".[hf]"': NETWORK,
  f"{MAIN} --config=configs/sft.py --config.model.path=FOLDER --config.data.files=FILE.jsonl "
  "--workdir=runs/sft": How("--config.data.segment_len=256"),
  GRPO: How(f"--config.optim.steps=2 {LEARN}"),
  SFT_CHAT: How(f"--config.optim.steps=2 {UNDRAWN}"),
  GRPO_OWN: How("--config.optim.steps=2 --config.eval.max_problems=4 --config.monitor.tensorboard=False "
                "--config.monitor.report=False", needs=(SFT_CHAT,)),
  f"{MAIN} --mode=export --workdir=runs/grpo --to=exported": How(needs=(GRPO,)),
  SFT: How(f"--config.optim.steps=2 --config.data.max_problems=100 {LEARN}"),
  f"{MAIN} --config=configs/gkd.py:cpu --workdir=runs/gkd_cpu": How(
    f"--config.optim.steps=2 --config.data.batch_rows=8 {LEARN}", needs=(SFT,)
  ),
  "python scripts/prepare_grpo_data.py --out=data": How("--prompts=100"),
  f"{MAIN} --config=configs/atlas_ranked.py:cpu --workdir=runs/ranked": How(
    "--config.optim.steps=2", needs=("python scripts/prepare_grpo_data.py --out=data",)
  ),
  "python scripts/train_atlas.py --config train_config.json": How(
    f"--config.optim.steps=2 {UNDRAWN}", needs=("python scripts/prepare_grpo_data.py --out=data",)
  ),
  "python scripts/run_offline_pipeline.py --export-path=traces.jsonl --output-dir=results/teacher_cpu "
  "--config=configs/teacher_rcl.py:cpu": How(
    " ".join(f"--override {one}" for one in (
      "optim.steps=2", "optim.warmup_steps=1", "data.batch_rows=16", "data.group_size=8", "eval.batch_rows=8",
      "monitor.tensorboard=False", "monitor.report=False"))),
  **dict.fromkeys((SUMS, RUN, f"arc-atlas review sessions {STORE}", APPROVE, EXPORT, DEPLOY, "atlas stats"),
                  BLOCK),
  TRAIN: BLOCK._replace(flags="--override optim.steps=30 --override monitor.tensorboard=False "
                              "--override monitor.report=False"),
  f"{TRACES} init --database-url=sqlite:///traces.db": How(),
  f"{TRACES} import --database-url=sqlite:///traces.db --input=traces.jsonl": How(
    needs=(f"{TRACES} init --database-url=sqlite:///traces.db",)
  ),
  f"{TRACES} review sessions --database-url=sqlite:///traces.db": How(needs=IMPORTED),
  f'{TRACES} review approve 1 --database-url=sqlite:///traces.db --reviewer=ada --note="checked"': How(
    needs=IMPORTED
  ),
  f"{TRACES} export --database-url=sqlite:///traces.db --output=approved.jsonl": How(needs=IMPORTED),
  "python scripts/judge.py --config=configs/rim.py:scripted --data=ANSWERS.jsonl": How(),
  "bash scripts/launch.sh 2 configs/sft.py:cpu workdir=runs/sft_launched": How(
    "optim.steps=2 data.max_problems=64 eval.max_problems=4 eval.sample_tokens=0 monitor.tensorboard=False "
    "monitor.report=False"),
  f"{MAIN} --mode=plan --config=configs/memory_40m.py --target=h100": How(
    why="long: a minute or more, and it needs the extra plan; tests/plan compile smaller ones"
  ),
  "python scripts/launch.py slurm --nodes=4 --config=configs/memory_40m.py": How(),
  "bash scripts/launch_with_server.sh 1 1 configs/grpo_arithmetic.py:cpu workdir=runs/grpo_server": How(
    why="long: a server and a training; tests/test_launch_with_server.py runs it at the size smoke"
  ),
  f"{MAIN} --config=configs/memory_40m.py:cpu,baseline --workdir=runs/baseline": How(TEXT),
  f"{MAIN} --config=configs/memory_40m.py:cpu,pretrain --workdir=runs/books "
  "--config.data.name=files --config.data.path='books/*.txt'": How(
    f"{PLAIN} --config.eval.gain_max_tokens=1024"),
  "bash scripts/launch_local.sh 2 --config=configs/memory_40m.py:cpu --workdir=runs/two": How(MEMORY),
  f"{MAIN} --config=configs/memory_40m.py:cpu,mix=context --workdir=runs/mac": How(MEMORY),
  f"{MAIN} --mode=eval --workdir=runs/quickstart --evals=mqar,niah,babilong": How(
    "--config.eval.task_samples=2 --config.eval.mqar_pairs=4 --config.eval.mqar_distances=64 "
    "--config.eval.niah_lengths=512 --config.eval.babilong_lengths=512", needs=(QUICKSTART,)),
  'pip install -e ".[serve]"': NETWORK,
  f"{MAIN} --mode=serve --workdir=runs/quickstart --port=8000": How(
    f"--port={PORT}", needs=(QUICKSTART,), asks="v1/models"
  ),
  f"{MAIN} --mode=chat --workdir=runs/quickstart": How("</dev/null", needs=(QUICKSTART,)),
  'pip install -e ".[cuda12,hf]"': NETWORK,
  STDLIB: How("--train_vocab_size=300 --train_bytes=100000 --limit_bytes=200000"),
  f"{MAIN} --config=configs/memory_40m.py:corpus=python_stdlib --workdir=runs/stdlib_40m "
  "--config.mesh.fsdp=8 --coordinator=HOST:PORT --num_processes=N --process_id=I": How(
    why="accelerator: the model of 40M parameters, on eight of them and several hosts"
  ),
  "bash scripts/test.sh": How(why="long: it is what runs this test"),
  # Inside the text.
  "python scripts/bench.py trm --json": How(why="long: a measurement; tests/test_bench.py runs small ones"),
  "python scripts/bench.py grpo --peer --trl_python=PYTHON --tunix_python=PYTHON --json": How(
    why="long: a measurement beside TRL and Tunix in environments of their own"
  ),
  "bash scripts/vllm_cpu_lane.sh": How(why="network: it installs vLLM"),
  "python scripts/rules_table.py": How(),
  "python scripts/runtime_table.py": How(),
  "python scripts/docs_reference.py": How(),
  "python -m atlas_jax.monitor.dashboard --runs=runs": How(
    f"--port={PORT}", needs=(QUICKSTART,), asks="_stcore/health"
  ),
  "python -m atlas_jax.monitor.alerts --runs=runs --json": How(needs=(QUICKSTART,)),
  f"{MAIN} --config=configs/modular.py --workdir=runs/modular": How("--config.optim.steps=3"),
  # Of the notebooks.
  f'{MAIN} --mode=generate --workdir=runs/notebook --prompt="class " --tokens=400': How(needs=(QUICKSTART,)),
  f"{MAIN} --mode=eval --workdir=runs/notebook": How(why="long: as of runs/quickstart, whose copy this is"),
  f"{MAIN} --config=configs/memory_40m.py:cpu_1h --workdir=runs/cpu_1h": How(
    why="long: the model of runs/quickstart, trained and evaluated for an hour"
  ),
  f"{MAIN} --config=configs/memory_40m.py:cpu,pretrain,rule=mine.replace --workdir=runs/replace_cpu": How(
    why="long: as of runs/quickstart, with a file that the notebook writes; tests/notebooks trains with it"
  ),
  f'{MAIN} --mode=generate --workdir=runs/notebook_grpo --prompt="12+34=" --tokens=3': How(needs=(GRPO,)),
  f"{MAIN} --mode=eval --workdir=runs/notebook_sudoku": How(needs=(SUDOKU,)),
  f"{MAIN} --config=configs/trm_sudoku.py:6x6 --workdir=runs/sudoku6": How(
    why="long: as of runs/sudoku4 with larger boards"
  ),
  f"{MAIN} --config=configs/trm_sudoku.py --workdir=runs/sudoku_mlp": How(
    why="accelerator: the published size"
  ),
}
# A notebook's run is an ordinary one in a folder of its own: what stands in for it.
COPIES = {"runs/notebook": "runs/quickstart", "runs/notebook_sudoku": "runs/sudoku4",
          "runs/notebook_grpo": "runs/grpo"}  # fmt: skip


def notebook_words(path: pathlib.Path) -> str:
  """Returns the text cells of a notebook."""
  cells = json.loads(path.read_text())["cells"]
  return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def is_of_pytest(command: str) -> bool:
  return command.startswith("python -m pytest")


def stories() -> list[list[str]]:
  """Lists the commands to run by block, README first; each where it is written first."""
  found: list[list[str]] = []
  seen: set[str] = set()
  for text in (README, *DOCS.values()):
    for block in blocks(text, "sh"):
      story = [one for one in commands_of(block) if one not in seen and (text is README or one in COMMANDS)]
      seen.update(story)
      found += [story] if story else []
  return found


OF_README = [one for block in blocks(README, "sh") for one in commands_of(block)]
OF_DOCS = [one for text in DOCS.values() for block in blocks(text, "sh") for one in commands_of(block)]
STORIES = stories()
OF_NOTEBOOKS = [commands_of(block) for path in NOTEBOOKS for block in blocks(notebook_words(path), "")]
INLINE = [one for text in (README, *map(notebook_words, NOTEBOOKS)) for one in inline_commands(text)]
INLINE_OF_DOCS = [one for text in DOCS.values() for one in inline_commands(text)]


def write_programs(folder: pathlib.Path) -> None:
  """Writes the programs of setup.py's entry points, as an installation of the clone has them."""
  folder.mkdir()
  for line in re.findall(r'"([\w-]+ = [\w.]+:\w+)"', (ROOT / "setup.py").read_text()):
    name, _, target = line.partition(" = ")
    module, _, function = target.partition(":")
    program = folder / name
    lines = ("#!/usr/bin/env python", "import sys", f"from {module} import {function}",
             f"sys.exit({function}())")
    program.write_text("\n".join(lines))
    program.chmod(0o755)
