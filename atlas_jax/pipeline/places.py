"""The files and stages of a pipeline, by name; those of its runs are in `workdir`."""
import pathlib

TRACES = pathlib.Path("data") / "traces.jsonl"  # The sessions that were let in, in the compact form.
INGEST = pathlib.Path("data") / "ingest.json"  # What became of all of them.
RUNS = {"sft": "sft", "train": "train"}  # Workdir of each training.
BEFORE = "before"  # Of the run that has made no update; with _sft behind it, of one after supervised tuning.
EVALUATIONS = "evaluations"  # Folder of what was measured, a file each.
STAGES = "stages"  # Folder of records of the stages that are done.
CHECKPOINT = "rl_checkpoint"
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
REJECTS = "rejects.jsonl"
METRICS = "metrics.jsonl"
EVAL = "eval.json"
EVAL_TEXT = "eval.md"
EVAL_PICTURE = "eval.png"
CONFIG_USED = "config_used.json"
OUTPUTS = (CHECKPOINT, METRICS, EVAL, EVAL_TEXT, EVAL_PICTURE, REJECTS, CONFIG_USED)


def stages(*, has_sft: bool) -> list[str]:
  """Returns the names of the stages in order."""
  return ["ingest", "before", *(["sft", "after_sft"] if has_sft else []), "train", "checkpoint", "report"]
