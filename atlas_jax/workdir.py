"""The files and folders of a run directory, by name; `files.write` writes them."""

# Who runs here, and since when; of a run on an object store, in the store.
OWNER = "owner.json"
REMOTE_OWNER = "owner.remote.json"
CONFIG = "config.json"

# As training goes: a row per logged step, TensorBoard's events, and where the time went.
METRICS = "metrics.jsonl"
EVENTS = "tensorboard"  # With the profiler's traces.
HIGH_LOSS = "high_loss.jsonl"  # Where batches of unusually high loss came from.
TRACKERS = "trackers.json"  # Names of the run at W&B and trackio.
LEDGER = "time.json"
ALERTS = "alerts.jsonl"  # What monitoring has told of, a row per event;
ACKNOWLEDGED = "alerts_acknowledged.jsonl"  # who has seen it, written by the dashboard.
COMPLETIONS = "completions"  # Folder of what a policy wrote, with its rewards.
EVALS = "evals"  # Folder of what evaluations leave, a folder per step.
VOTES = "votes.json.gz"  # In a folder of EVALS: all answers to ARC tasks,
STEPS = "steps.json"  # and answers to some puzzles after every supervision step.

# Of checkpoints, a folder per step, each with an inventory of its files.
CHECKPOINTS = "checkpoints"
INVENTORY = "files.json"

# Of a run that was handed over, in place of checkpoints, which hold the optimizer too.
WEIGHTS = "model.safetensors"
WEIGHTS_RECORD = "weights.json"  # Their step and checksums.
CARD = "README.md"  # Of the repository on the Hugging Face Hub.
UPLOAD = "upload.json"  # How the last upload ended.

# Written last: where the summary is, the run is finished.
REPORT = "report.png"
SUMMARY = "summary.json"

# Copies of what using a language model needs beside its parameters, each a folder.
TOKENIZER = "tokenizer"
TEMPLATE = "template"
ADAPTER = "adapter"  # The config of the adapters that a run started from.
PRETRAINED = "published"  # What a pretrained model has besides its weights.
SHAPE = "shape.json"  # Fields of the model, of a run that started from a run that drew its own.
BASE_STEP = "base.json"  # The step of the run in config.model.path that was read,
TEACHER_STEP = "teacher.json"  # and of that in config.distill.teacher,
STUDENT_STEP = "student.json"  # or in config.teacher.student.
BASELINE = "baseline.json"  # What the model answered that a distillation began with.
PROTOCOL = "protocol.json"  # The protocol that a teacher is trained with, see rollout/teaching.py.

# Of a run on puzzles: what they are, and the vectors that latents start from where they follow from no seed.
PUZZLES = "puzzles.json"
RESET = "reset.npz"

# Of vLLM: what its server says, and a folder of the weights that are handed over.
VLLM_LOG = "vllm_server.log"
SERVED = "served"
