"""Launch files of clusters: filled, refused by name, held against schemas, and run by a pretended SLURM."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jsonschema
import numpy as np
import pytest
import yaml

from atlas_jax.monitor.ledger import KINDS
from atlas_jax.parallel import signals
from scripts import launch
from tests import fake_slurm, program
from tests.program import ROOT

CONFIG = "--config=configs/memory_40m.py"
TPU = ["--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--devices=4", "--nodes=4"]
TWO_SLICES = [*TPU, "--slices=2", "--config.mesh.dcn_data=2", "--config.data.batch_rows=32",
              "--config.eval.batch_rows=32"]  # fmt: skip
POD = ["--tpu=pod", "--zone=us-west4-a", "--workdir=/nfs/run"]
SHAPES = {
  "slurm": ["slurm", "--nodes=4", "--partition=gpu", "--account=lab", "--config.seed=3"],
  "slurm_cpu": ["slurm", "--devices=0"],
  "jobset": ["jobset", "--nodes=2", "--devices=2"],
  "jobset_tpu": ["jobset", *TWO_SLICES],
  "skypilot": ["skypilot", "--nodes=2", "--spot=false"],
  "tpu_pod": ["tpu_pod", *POD],
}


def printed(capsys, *words):
  """The file that a command line prints."""
  assert launch.main([*words, CONFIG]) == 0
  return capsys.readouterr().out


WRONG = [
  ([], "the first word must be one of slurm, jobset, skypilot, tpu_pod, got ''"),
  (["slrum", CONFIG], "got 'slrum'"),
  (["slurm"], "--config is missing: FILE or FILE:ARGUMENTS"),
  (["slurm", CONFIG, "--node=4"], "slurm takes no --node; did you mean 'nodes'?"),
  (["slurm", CONFIG, "--topology=4x4"], "slurm takes no --topology; it is of jobset"),
  (["slurm", CONFIG, "4"], "'4' must be --name=value, or --submit"),
  (["slurm", CONFIG, "--nodes=two"], "--nodes=two must be a whole number, at least 1"),
  (["slurm", CONFIG, "--nodes=0"], "--nodes=0 must be"),
  (["slurm", CONFIG, "--nodes=2", "--nodes=3"], "--nodes is given twice"),
  (["slurm", CONFIG, "--time=1h"], "--time=1h must be [DAYS-]HOURS:MINUTES:SECONDS"),
  (["slurm", CONFIG, "--workdir=a b"], "--workdir=a b must be the run's directory"),
  (["slurm", CONFIG, "--config.optim.lrr=1"], "did you mean 'config.optim.lr'"),
  (["slurm", CONFIG, "--config.optim.lr=fast"], "must be a number"),
  (["slurm", "--config=configs/memory40m.py"], "did you mean 'configs/memory_40m.py'"),
  (["slurm", CONFIG, "--nodes=5"], "is not a multiple of config.mesh.data x fsdp = 5; nearest are"),
  (["slurm", CONFIG, "--nodes=2", "--config.mesh.fsdp=4"], "does not divide the 2 devices"),
  (["jobset", CONFIG, "--tpu=tpu-v6e-slice"], "--tpu and --topology belong together"),
  (["jobset", CONFIG, "--slices=2"], "--slices=2 is for TPUs; GPUs are --nodes=2"),
  (["jobset", CONFIG, *TPU, "--slices=2"], "--slices=2 needs --config.mesh.dcn_data=2, which is 1"),
  (["jobset", CONFIG, "--workdir=results/x"], "--workdir=results/x must lie below /app/runs"),
  (["jobset", "--config=/elsewhere.py"], "there is no file '/elsewhere.py'"),
  (["jobset", f"--config={ROOT}/configs/memory_40m.py"], "must be a file of this repository"),
  (["tpu_pod", CONFIG, "--tpu=pod", "--zone=z"], "--workdir is missing"),
]  # fmt: skip


@pytest.mark.parametrize("words, said", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_words_that_cannot_be_are_refused_by_name(words, said, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert launch.main(words) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("launch: ") and len(err.splitlines()) == 1 and said in err, err


@pytest.mark.parametrize("kind", launch.CLUSTERS)
def test_a_command_that_is_missing_is_named_before_anything_is_printed(kind, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv("PATH", "/nowhere")
  more = POD if kind == "tpu_pod" else []
  assert launch.main([kind, CONFIG, "--submit", *more]) == 2
  out, err = capsys.readouterr()
  assert out == "" and f"--submit needs the command {launch.CLUSTERS[kind].needs}, which is not on" in err


def test_a_template_is_filled_whole_and_by_its_parts():
  template = "a {{x}}\nb #[one]\nc {{y}} #[two]\n"
  assert launch.fill(template, {"x": "1", "y": "2"}, {"one"}) == "a 1\nb\n"
  with pytest.raises(ValueError, match="asks for y, which have no value"):
    launch.fill(template, {"x": "1"}, {"two"})


@pytest.mark.parametrize("name", ["slurm", "slurm_cpu", "tpu_pod"])
def test_shell_files_parse_and_a_linter_finds_nothing(name, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  file = tmp_path / "launch.sh"
  file.write_text(printed(capsys, *SHAPES[name]))
  beside = pathlib.Path(sys.executable).parent
  linter = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
  assert linter, "shellcheck is missing: pip install -e '.[dev]'"
  for command in (["bash", "-n"], [linter, "--severity=style"]):
    done = subprocess.run([*command, file], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_a_job_of_slurm_asks_for_what_the_words_say(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  text = printed(capsys, *SHAPES["slurm"])
  asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
  assert asked == {
    "job-name": "memory-40m", "nodes": "4", "ntasks-per-node": "1", "cpus-per-task": "8",
    "gpus-per-node": "1", "partition": "gpu", "account": "lab", "time": "24:00:00",
    "signal": "USR1@120", "requeue": "", "open-mode": "append", "chdir": str(ROOT),
    "output": "results/memory_40m/logs/%x_%j.log"}  # fmt: skip
  assert "flags=(--config=configs/memory_40m.py --workdir=results/memory_40m --config.seed=3)" in text
  assert "JAX_PLATFORMS" not in text
  on_cpu = printed(capsys, *SHAPES["slurm_cpu"])
  assert "gpus-per-node" not in on_cpu and "partition" not in on_cpu
  assert "export JAX_PLATFORMS=cpu\n" in on_cpu


# --- YAML ---


def shape(required, **optional):
  """A schema of an object: fields that must be there, and others that may; nothing else."""
  return {"type": "object", "required": list(required), "properties": {**required, **optional},
          "additionalProperties": False}  # fmt: skip


def listed(item):
  """A schema of a list that is not empty."""
  return {"type": "array", "items": item, "minItems": 1}


TEXT, WHOLE, LABEL = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {
  "type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}  # fmt: skip
TEXTS = {"type": "object", "additionalProperties": TEXT}
FIELD = {"type": "string", "pattern": r"^metadata\.annotations\['[a-z0-9./-]+'\]$"}
# What the launch files use of the API of pods, of jobs (batch/v1) and of JobSet (v1alpha2).
CONTAINER = shape(
  {"name": LABEL, "image": TEXT, "args": listed(TEXT),
   "volumeMounts": listed(shape(dict(name=LABEL, mountPath=TEXT))),
   "resources": shape({"limits": {"type": "object", "additionalProperties": WHOLE, "minProperties": 1}}),
   "ports": listed(shape(dict(containerPort=WHOLE, name={**LABEL, "maxLength": 15})))},
  env=listed(shape(dict(name=TEXT, valueFrom=shape(dict(fieldRef=shape(dict(fieldPath=FIELD))))))),
)  # fmt: skip
POD_SPEC = shape(
  {"restartPolicy": {"const": "Never"}, "terminationGracePeriodSeconds": WHOLE,
   "containers": listed(CONTAINER), "securityContext": shape({"fsGroup": WHOLE}), "volumes": listed(shape(
     {"name": LABEL}, persistentVolumeClaim=shape({"claimName": LABEL}), emptyDir=shape({"medium": TEXT})))},
  nodeSelector=TEXTS)  # fmt: skip
POD_RULE = shape(
  {"action": {"enum": ["FailJob", "Ignore", "Count", "FailIndex"]}},
  onExitCodes=shape(dict(operator={"enum": ["In", "NotIn"]}, values=listed(WHOLE), containerName=LABEL)),
  onPodConditions=listed(shape(dict(type=TEXT, status={"enum": ["True", "False", "Unknown"]}))))  # fmt: skip
JOB_SPEC = shape({"parallelism": WHOLE, "completions": WHOLE, "completionMode": {"const": "Indexed"},
                  "backoffLimit": WHOLE, "podFailurePolicy": shape({"rules": listed(POD_RULE)}),
                  "template": shape({"spec": POD_SPEC})})  # fmt: skip
REASONS = {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]}
SET_RULE = shape({
  "name": TEXT, "onJobFailureReasons": listed(REASONS),
  "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]}})  # fmt: skip
JOBSET = shape({
  "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"}, "kind": {"const": "JobSet"},
  "metadata": shape({"name": LABEL, "namespace": LABEL}, annotations=TEXTS),
  "spec": shape(
    {"failurePolicy": shape({"maxRestarts": WHOLE, "rules": listed(SET_RULE)}),
     "replicatedJobs": listed(shape(
       {"name": LABEL, "replicas": WHOLE, "template": shape({"spec": JOB_SPEC})}))},
    coordinator=shape({"replicatedJob": LABEL, "jobIndex": WHOLE, "podIndex": WHOLE}))})  # fmt: skip
SKYPILOT = shape({
  "name": LABEL, "num_nodes": WHOLE, "workdir": TEXT, "volumes": TEXTS, "setup": TEXT, "run": TEXT,
  "resources": shape({
    "accelerators": {"type": "string", "pattern": r"^[\w-]+:\d+$"}, "use_spot": {"type": "boolean"},
    "job_recovery": shape({"max_restarts_on_errors": WHOLE, "recover_on_exit_codes": listed(WHOLE)}),
  })})  # fmt: skip


@pytest.mark.parametrize("name, schema", [("jobset", JOBSET), ("jobset_tpu", JOBSET), ("skypilot", SKYPILOT)])
def test_yaml_files_are_of_the_shape_that_their_readers_take(name, schema, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  found = yaml.safe_load(printed(capsys, *SHAPES[name]))
  jsonschema.Draft202012Validator(schema).validate(found)
  found["spec" if "spec" in found else "resources"]["other"] = 1
  with pytest.raises(jsonschema.ValidationError, match="'other' was unexpected"):
    jsonschema.Draft202012Validator(schema).validate(found)


def job_of(text):
  """The whole, its job and its container."""
  whole = yaml.safe_load(text)
  (job,) = whole["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  return whole, job, container


def test_pods_with_gpus_are_numbered_by_flags(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  whole, job, container = job_of(printed(capsys, *SHAPES["jobset"], "--config.data.name=$(HOME)"))
  assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 2
  assert whole["spec"]["coordinator"] == {"replicatedJob": job["name"], "jobIndex": 0, "podIndex": 0}
  assert container["args"] == [
    "python", "-m", "atlas_jax.main", CONFIG, "--workdir=/app/runs/memory_40m", "--config.data.name=$$(HOME)",
    "--coordinator=$(COORDINATOR):8476", "--num_processes=2", "--process_id=$(PROCESS)"]  # fmt: skip
  assert {one["name"] for one in container["env"]} == {"COORDINATOR", "PROCESS"}
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
  assert container["ports"][0]["containerPort"] == launch.PORT == 8476
  stopped, evicted = job["template"]["spec"]["podFailurePolicy"]["rules"]
  assert stopped["onExitCodes"]["values"] == [signals.STOPPED]
  assert evicted["onPodConditions"][0]["type"] == "DisruptionTarget"


def test_pods_with_tpus_know_each_other_by_themselves(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  whole, job, container = job_of(printed(capsys, *SHAPES["jobset_tpu"]))
  assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 4)
  assert container["resources"]["limits"] == {"google.com/tpu": 4} and "env" not in container
  assert not any("coordinator" in word for word in container["args"]) and "coordinator" not in whole["spec"]
  assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in whole["metadata"]["annotations"]
  words = ["jobset", *TPU, "--config.data.batch_rows=32", "--config.eval.batch_rows=32"]
  _, _, alone = job_of(printed(capsys, *words, "--image=here.org/atlas_jax:tpu"))
  assert alone["image"] == "here.org/atlas_jax:tpu"


def test_images_are_those_of_the_container_files(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  bake = (ROOT / "scripts/docker/docker-bake.hcl").read_text()
  tags = {f"atlas_jax:{tag}" for tag in re.findall(r'tags\s+= \["\$\{IMAGE\}:(\w+)"\]', bake)}
  images = {job_of(printed(capsys, *SHAPES[name]))[2]["image"] for name in ("jobset", "jobset_tpu")}
  assert images == {"atlas_jax:latest", "atlas_jax:tpu"} and images <= tags


# --- scripts of clusters, with stand-ins for their programs ---

# Of each call the next line of a file: how the workers end, or what the pod is.
GCLOUD = """#!/usr/bin/env bash
{ read -r line; rest=$(cat); } <ANSWERS
printf '%s' "$rest" >ANSWERS
for code in $line; do
  if [[ $code =~ ^[0-9]+$ ]]; then echo "atlas_jax ended with $code"; else echo "$code"; fi
done
"""
PODS = [("75 75\n0 0", 0, "finished"), ("0 137\n0 0", 0, "finished"),
        ("1 1", 1, "a worker ended with exit code 1"),
        ("0\nPREEMPTED", 75, "1 of 2 workers answered, and pod is PREEMPTED"),
        ("9 137\n137 137", 137, "given up behind 1 starts after failures")]  # fmt: skip


@pytest.mark.parametrize("answers, code, said", PODS)
def test_a_pod_is_started_again_where_that_helps(answers, code, said, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  (tmp_path / "answers").write_text(answers)
  stand_in = tmp_path / "gcloud"
  stand_in.write_text(GCLOUD.replace("ANSWERS", str(tmp_path / "answers")))
  stand_in.chmod(0o755)
  file = tmp_path / "launch.sh"
  file.write_text(printed(capsys, *SHAPES["tpu_pod"], "--nodes=2", "--restarts=1"))
  env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
  done = subprocess.run(["bash", file], env=env, capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == code and said in done.stderr.splitlines()[-1], done.stderr
  assert (tmp_path / "answers").read_text() == ""


def test_a_machine_of_skypilot_is_told_its_number(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  task = yaml.safe_load(printed(capsys, *SHAPES["skypilot"], "--config.data.name=a b"))
  stand_in = tmp_path / ".venv/bin/python"
  stand_in.parent.mkdir(parents=True)
  stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  stand_in.chmod(0o755)
  env = {**os.environ, "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NUM_NODES": "2",
         "SKYPILOT_NODE_RANK": "1"}  # fmt: skip
  command = ["bash", "-c", task["run"]]
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
  assert done.stdout.splitlines() == [
    "-m", "atlas_jax.main", CONFIG, "--workdir=/runs/memory_40m", "--config.data.name=a b",
    "--coordinator=10.0.0.4:8476", "--num_processes=2", "--process_id=1"]  # fmt: skip


# --- a pretended SLURM ---


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """The folder of a pretended SLURM, whose programs are on the path."""
  state = tmp_path / "slurm"
  monkeypatch.setenv("PATH", f"{fake_slurm.install(state)}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("FAKE_SLURM", str(state))
  monkeypatch.setenv("ATLAS_PYTHON", sys.executable)
  monkeypatch.chdir(ROOT)
  return state


def test_options_that_slurm_does_not_know_are_refused(slurm, tmp_path):
  (tmp_path / "job.sh").write_text("#!/bin/bash\n#SBATCH --gpus-pro-node=1\n")
  done = subprocess.run(["sbatch", tmp_path / "job.sh"], capture_output=True, text=True, check=False)
  assert done.returncode == 1 and "unrecognized option '--gpus-pro-node'" in done.stderr


# Stands in for `python -m atlas_jax.main`: ends as the start of this number is to end.
TASK = """#!/usr/bin/env bash
codes=(CODES)
code=${codes[${SLURM_RESTART_COUNT:-0}]}
[[ $SLURM_PROCID == 1 ]] || code=$((code > 128 ? 1 : code))
if ((code == 137)); then kill -9 $$; fi
exit "$code"
"""
ENDS = [("75 137 0", 0, 3, "finished"), ("1", 1, 1, "ended with exit code 1; the logs"),
        ("137 137 137 137", 137, 3, "ended with exit code 137")]  # fmt: skip


@pytest.mark.parametrize("codes, code, starts, said", ENDS)
def test_a_job_is_queued_again_where_that_helps(codes, code, starts, said, slurm, tmp_path, monkeypatch,
                                                capfd):
  stand_in = tmp_path / "python"
  stand_in.write_text(TASK.replace("CODES", codes))
  stand_in.chmod(0o755)
  monkeypatch.setenv("ATLAS_PYTHON", str(stand_in))
  words = ["slurm", CONFIG, "--nodes=2", "--devices=0", f"--workdir={tmp_path}/run", "--restarts=2"]
  assert launch.main([*words, "--submit"]) == 0 and "Submitted batch job" in capfd.readouterr().out
  assert fake_slurm.run(slurm, os.environ) == (code, starts)
  (log,) = (tmp_path / "run/logs").glob("run_[0-9][0-9][0-9][0-9].log")
  assert said in log.read_text().splitlines()[-1]
  assert len(list((tmp_path / "run/logs").glob("*_task[01].log"))) == 2


# Of real processes, most of the time goes into starting them: what they train is small.
TINY = "--config=configs/memory_40m.py:smoke,pretrain"
NUMBERS = {
  "recipe": "tests.numbers_recipe", "data.batch_rows": 8, "eval.batch_rows": 8, "optim.steps": 6,
  "optim.warmup_steps": 2, "monitor.tensorboard": False, "monitor.report": False,
  "monitor.group_norms": False,
}  # fmt: skip


@pytest.mark.timeout(900)
def test_four_tasks_that_are_preempted_and_queued_again_end_as_one_process(slurm, tmp_path, monkeypatch,
                                                                           capfd):
  fields = [f"--config.{name}={value}" for name, value in NUMBERS.items()]
  alone = program.run(TINY, *fields, f"--workdir={tmp_path}/alone")
  assert alone.code == 0, alone.err
  run = tmp_path / "run"
  for name, value in {"JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                      "ATLAS_TEST_STOP": "3:SIGUSR1:0:parent", "FAKE_SLURM_WATCHED": f"{run}/owner.json",
                      }.items():  # fmt: skip
    monkeypatch.setenv(name, value)
  words = ["slurm", TINY, *fields, "--nodes=4", "--devices=0", f"--workdir={run}", "--name=four", "--submit"]
  assert launch.main(words) == 0, capfd.readouterr()
  began_s = time.time()
  ended = fake_slurm.run(slurm, os.environ)
  logs = {path.name.rpartition("_")[2]: path.read_text() for path in (run / "logs").glob("four_*")}
  assert ended == (0, 2), logs
  assert {name for name in logs if "task" in name} == {f"task{i}.log" for i in range(4)}
  assert "saved (start 1); queued again" in "".join(logs.values())
  for name, text in logs.items():
    if "task" in name:
      assert "SIGUSR1: the run stops at the next point" in text and text.count("of 4 joined") == 2, text
  assert "resumed from step" in logs["task0.log"]  # Who speaks for all.
  assert json.loads((slurm / "watched").read_text())["pid"] > 0, "the workdir had no owner"
  losses, expected = program.losses(run), program.losses(tmp_path / "alone")
  assert list(losses) == list(expected) == [1, 2, 3, 4, 5, 6]
  np.testing.assert_allclose([*losses.values()], [*expected.values()], atol=1e-5)
  account = json.loads((run / "time.json").read_text())
  assert account["totals"].keys() == set(KINDS)
  assert sum(account["totals"].values()) == pytest.approx(account["wall_s"] - began_s, rel=0.01, abs=1.5)
