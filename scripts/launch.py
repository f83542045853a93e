"""Fills the launch file of a cluster, prints it, and hands it in.

  python scripts/launch.py slurm --nodes=4 --config=configs/memory_40m.py
  python scripts/launch.py jobset --nodes=2 --devices=8 --config=configs/memory_170m.py --submit
  python scripts/launch.py skypilot --nodes=2 --accelerator=H100 --config=configs/memory_40m.py
  python scripts/launch.py tpu_pod --nodes=4 --devices=4 --tpu=NAME --zone=ZONE --workdir=DIR --config=FILE

--nodes is the number of machines (of TPUs: hosts of a slice), --devices that of GPUs or chips on each.
--config.FIELD=VALUE changes a field of the config, which is checked here, with the rows on so many devices.
The templates are scripts/launch/; without an option the table OPTIONS has its default.
"""
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jax.sharding import AbstractMesh, AxisType

from atlas_jax import command, modes
from atlas_jax import config as configs
from atlas_jax.fields import nearest
from atlas_jax.files import closed_pipe
from atlas_jax.parallel import mesh as meshes

ROOT = pathlib.Path(__file__).parents[1]
TEMPLATES = ROOT / "scripts" / "launch"
LABEL_CHARACTERS = 40  # Of a name; Kubernetes adds to it, and stops at 63.
PORT = 8476


class Option(NamedTuple):
  """A word of the command line: its default, and what it must look like."""

  default: str | None  # None: it must be given
  pattern: str
  need: str


def whole(default: str, least: int = 1) -> Option:
  """Makes an option of a whole number."""
  return Option(default, r"[1-9]\d*" if least else r"\d+", f"a whole number, at least {least}")


def word(default: str | None, need: str) -> Option:
  """Makes an option of a name, or of an address without spaces."""
  return Option(default, r"[\w./=,@+:~-]+", need)


COMMON = {
    "config": Option(None, r".+", "FILE or FILE:ARGUMENTS, such as configs/memory_40m.py"),
    "nodes": whole("1"), "devices": whole("1"), "restarts": whole("10", 0),
    "workdir": word("", "the run's directory, on a file system that all machines see, without spaces"),
    "name": Option("", r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "small letters, digits and -, 40 at most"),
}
NOTICE = {"notice_s": whole("120")}


class Cluster(NamedTuple):
  """A kind of cluster: its template, who takes the filled file, and its options besides COMMON."""

  template: str
  submit: tuple[str, ...]  # the program that takes the file, and its words before it
  needs: str  # the program that must be there
  options: Mapping[str, Option]
  runs: str  # where runs lie


CLUSTERS = {
    "slurm": Cluster("slurm.sh", ("sbatch",), "sbatch", {
        **NOTICE, "devices": whole("1", 0), "cpus": whole("8"), "partition": word("", "a partition"),
        "account": word("", "an account"),
        "time": Option("24:00:00", r"(\d+-)?\d{1,2}:\d{2}:\d{2}", "[DAYS-]HOURS:MINUTES:SECONDS"),
        }, "results"),
    "jobset": Cluster("jobset.yaml", ("kubectl", "create", "-f"), "kubectl", {
        **NOTICE, "image": word("", "an image of scripts/docker, such as REGISTRY/atlas_jax:latest"),
        "claim": word("runs", "a claim of a volume"), "namespace": word("default", "a namespace"),
        "tpu": word("", "a kind of TPU, such as tpu-v5-lite-podslice"),
        "topology": Option("", r"\d+x\d+(x\d+)?", "such as 4x4"), "slices": whole("1")}, "/app/runs"),
    "skypilot": Cluster("skypilot.yaml", ("sky", "jobs", "launch", "--yes"), "sky", {
        "accelerator": word("H100", "a kind of GPU, such as H100"), "volume": word("runs", "a volume"),
        "spot": Option("true", "true|false", "true or false"), "extra": word("cuda12", "cuda12 or cuda13"),
        }, "/runs"),
    "tpu_pod": Cluster("tpu_pod.sh", ("bash",), "gcloud", {
        "tpu": word(None, "the name of the TPU"), "zone": word(None, "its zone"),
        "folder": word("~/atlas_jax", "the repository on the workers"),
        "workdir": word(None, COMMON["workdir"].need)}, ""),
}


class Launch(NamedTuple):
  """What the command line asks for."""

  kind: str
  values: dict[str, str]
  overrides: dict[str, str]  # dotted field -> its value as text
  submit: bool


def read(words: Sequence[str]) -> Launch:
  """Reads the command line behind the program's name.

  Raises:
    ValueError: names the word that is unknown, wrong or missing.
  """
  kind = words[0] if words else ""
  if kind not in CLUSTERS:
    raise ValueError(f"the first word must be one of {', '.join(CLUSTERS)}, got {kind!r}")
  options = {**COMMON, **CLUSTERS[kind].options}
  values, overrides, submit = {}, {}, False
  for each in words[1:]:
    found = re.fullmatch(r"--(config\.)?([\w.]+)=(.*)", each, re.DOTALL)
    if each == "--submit":
      submit = True
    elif found is None:
      raise ValueError(f"{each!r} must be --name=value, or --submit")
    elif found[1]:
      overrides[found[2]] = found[3]
    elif found[2] not in options:
      others = [other for other, cluster in CLUSTERS.items() if found[2] in cluster.options]
      why = f"it is of {' and '.join(others)}" if others else nearest(found[2], options)
      raise ValueError(f"{kind} takes no --{found[2]}; {why}")
    elif found[2] in values:
      raise ValueError(f"--{found[2]} is given twice")
    elif not re.fullmatch(options[found[2]].pattern, found[3]):
      raise ValueError(f"--{found[2]}={found[3]} must be {options[found[2]].need}")
    else:
      values[found[2]] = found[3]
  for name, option in options.items():
    if name not in values and option.default is None:
      raise ValueError(f"--{name} is missing: {option.need}")
    values.setdefault(name, option.default or "")
  return Launch(kind, values, overrides, submit)


def check(launch: Launch) -> None:
  """Refuses what the program would refuse on the cluster, and what does not go together.

  Raises:
    ValueError: as of the config, the mesh and the rows; or names the options.
  """
  values = launch.values
  config = configs.resolve(command.read_config(values["config"], launch.overrides))
  file = pathlib.Path(values["config"].partition(":")[0])
  if launch.kind != "slurm" and (file.is_absolute() or not (ROOT / file).is_file()):
    raise ValueError(f"--config={values['config']}: {file} must be a file of this repository, which is what "
                     "the machines of the cluster have")
  if re.search(r"\s", f"{ROOT}{pathlib.Path.cwd()}"):
    raise ValueError(f"the repository and this folder ({pathlib.Path.cwd()}) must have paths without spaces")
  slices = int(values.get("slices", "1"))
  if launch.kind == "jobset" and bool(values["tpu"]) != bool(values["topology"]):
    raise ValueError("--tpu and --topology belong together, such as --tpu=tpu-v5-lite-podslice and "
                     "--topology=4x4")
  if slices > 1 and not values["tpu"]:
    raise ValueError(f"--slices={slices} is for TPUs; GPUs are --nodes={slices * int(values['nodes'])}")
  if slices > 1 and config.mesh.dcn_data != slices:
    raise ValueError(f"--slices={slices} needs --config.mesh.dcn_data={slices}, which is "
                     f"{config.mesh.dcn_data}")
  # A CPU of a machine is one device.
  devices = int(values["nodes"]) * max(1, int(values["devices"])) * slices
  shape = meshes.shape_of(devices, **config.mesh)
  modes.check_rows(config, AbstractMesh(shape, meshes.AXES, (AxisType.Auto,) * 3), ("data", "eval"))


def complete(launch: Launch) -> dict[str, str]:
  """Returns what the template asks for, from the options and the places that follow from them."""
  values, runs = dict(launch.values), CLUSTERS[launch.kind].runs
  stem = "_".join(filter(None, re.split(r"\W+", values["config"].replace(".py", "").rpartition("/")[2])))
  values["workdir"] = values["workdir"] or f"{runs}/{stem}"
  if runs.startswith("/") and not values["workdir"].startswith(f"{runs}/"):
    raise ValueError(f"--workdir={values['workdir']} must lie below {runs}, where the volume is mounted")
  last = re.sub(r"[^a-z0-9]+", "-", pathlib.PurePosixPath(values["workdir"]).name.lower()).strip("-")
  label = re.sub(r"^[^a-z]+", "", last)[:LABEL_CHARACTERS].strip("-")
  values["name"] = values["name"] or label or "atlas-jax"
  flags = [f"--config={values['config']}", f"--workdir={values['workdir']}",
           *(f"--config.{name}={value}" for name, value in launch.overrides.items())]
  values.update(root=str(ROOT), here=str(pathlib.Path.cwd()), logs=f"{values['workdir']}/logs",
                flags=shlex.join(flags))
  if launch.kind == "jobset":
    values["image"] = json.dumps(values["image"] or f"atlas_jax:{'tpu' if values['tpu'] else 'latest'}")
    # Kubernetes fills in $(NAME); of what is the user's nothing is.
    arguments = ["python", "-m", "atlas_jax.main", *(flag.replace("$(", "$$(") for flag in flags)]
    if not values["tpu"]:  # The pods of TPUs know each other by variables of their own.
      arguments += [f"--coordinator=$(COORDINATOR):{PORT}", f"--num_processes={values['nodes']}",
                    "--process_id=$(PROCESS)"]
    values["arguments"] = json.dumps(arguments)
  if launch.kind == "tpu_pod":
    logs = shlex.quote(values["logs"])
    values["command"] = shlex.quote(
        f"cd {values['folder']} && mkdir -p {logs} && .venv/bin/python -m atlas_jax.main {values['flags']} "
        f">>{logs}/worker_$(hostname).log 2>&1; echo atlas_jax ended with $?")
  return values


def fill(template: str, values: Mapping[str, str], parts: set[str]) -> str:
  """Fills a template.

  Args:
    template: text with {{name}}; a line that ends in #[WORD] stands only for that part.
    values: by name.
    parts: those that stand.

  Raises:
    ValueError: if a name has no value.
  """
  lines = []
  for line in template.splitlines():
    text, marker, part = line.rpartition(" #[")
    if marker and part.removesuffix("]") not in parts:
      continue
    lines.append(text if marker else line)
  text = "\n".join(lines) + "\n"
  if missing := set(re.findall(r"{{(\w+)}}", text)) - values.keys():
    raise ValueError(f"the template asks for {', '.join(sorted(missing))}, which have no value")
  return re.sub(r"{{(\w+)}}", lambda found: values[found[1]], text)


def filled(launch: Launch) -> str:
  """Returns the launch file."""
  values = complete(launch)
  on_tpu = launch.kind == "tpu_pod" or bool(values.get("tpu"))
  parts = {"tpu" if on_tpu else "cpu" if values["devices"] == "0" else "gpu"}
  parts |= {name for name in ("partition", "account") if values.get(name)}
  parts |= {"slices"} if values.get("slices", "1") != "1" else set()
  return fill((TEMPLATES / CLUSTERS[launch.kind].template).read_text(encoding="utf-8"), values, parts)


def check_command(kind: str) -> None:
  """Refuses to hand in a file where the cluster's command is missing.

  Raises:
    ValueError: names the command.
  """
  if shutil.which(program := CLUSTERS[kind].needs) is None:
    raise ValueError(f"--submit needs the command {program}, which is not on this machine; leave --submit "
                     "out to print the file, and hand it in where the command is")


def hand_in(launch: Launch, text: str) -> int:
  """Hands the filled file to the cluster's command; returns its exit code."""
  cluster = CLUSTERS[launch.kind]
  if launch.kind == "slurm":  # SLURM opens the log before the script can make its folder, and says nothing.
    pathlib.Path(complete(launch)["logs"]).mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / cluster.template
    path.write_text(text, encoding="utf-8")
    return subprocess.run([*cluster.submit, str(path)], check=False).returncode


@closed_pipe.quiet
def main(argv: Sequence[str]) -> int:
  """Prints the launch file, and hands it in where that is asked; returns the exit code."""
  if {"-h", "--help"} & set(argv):
    print(__doc__)
    return 0
  try:
    launch = read(argv)
    check(launch)
    if launch.submit:
      check_command(launch.kind)
    text = filled(launch)
  except ValueError as error:
    print(f"launch: {error}", file=sys.stderr)
    return 2
  print(text, end="")
  if not launch.submit:
    return 0
  code = hand_in(launch, text)
  if code:
    print(f"launch: {' '.join(CLUSTERS[launch.kind].submit)} ended with exit code {code}", file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
