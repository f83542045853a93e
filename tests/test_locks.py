"""Locks pin every package by version and hash, and installation takes nothing else."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def packages(lock):
  """Returns {name: (version, hashes)} of a lock, whose lines go on after a backslash."""
  lines = re.sub(r"\\\n\s*", "", lock.read_text()).splitlines()
  found = {}
  for line in lines:
    if line and not line.startswith("#"):
      pinned, *hashes = line.split("--hash=")
      name, _, version = pinned.partition(";")[0].strip().partition("==")
      found[name] = version, [one.strip() for one in hashes]
  return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_of_a_lock_has_a_version_and_hashes(lock):
  for name, (version, hashes) in packages(lock).items():
    assert version, name
    assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), name


@pytest.mark.parametrize("version", ["py311", "py312"])
def test_what_a_run_needs_has_the_versions_that_are_tested(version):
  small, large = (packages(ROOT / "requirements" / f"{name}{version}.txt") for name in ("core-", ""))
  assert small.keys() <= large.keys() and "jax" in small and "setuptools" in small
  assert all(small[name] == large[name] for name in small)


@pytest.mark.parametrize(("extras", "lock"), [("dev", "py311.txt"), ("", "core-py311.txt")])
def test_installation_asks_for_hashes_and_puts_the_project_in_alone(extras, lock, tmp_path):
  said = run(tmp_path, f'install_by {tmp_path} "{extras}" $(lock_of {tmp_path} {extras}) -- -m pip install')
  first, second = said.splitlines()
  assert first == f"-m pip install --require-hashes -r requirements/{lock}"
  assert second == f"-m pip install --no-deps --no-build-isolation --editable {ROOT}"


def test_the_installer_itself_comes_by_its_hashes(tmp_path):
  said = run(tmp_path, f"have_uv {tmp_path}", fails="-m uv")
  assert "--require-hashes -r requirements/uv.txt" in said


def test_without_a_lock_the_project_is_installed_with_its_dependencies(tmp_path):
  said = run(tmp_path, f"install_by {tmp_path} dev -- -m pip install")
  assert said.strip() == f"-m pip install --editable {ROOT}[dev]"


def run(folder, command, fails="nothing"):
  """Runs functions of environment.sh with a Python that says what it is asked; calls that begin so fail."""
  stand_in = folder / "bin" / "python"
  stand_in.parent.mkdir()
  stand_in.write_text(f'#!/usr/bin/env bash\nif [[ $1 == -c ]]; then echo py311; exit; fi\necho "$@"\n'
                      f'[[ "$*" != "{fails}"* ]]\n')
  stand_in.chmod(0o755)
  done = subprocess.run(["bash", "-c", f"source scripts/environment.sh; {command}"], cwd=ROOT,
                        capture_output=True, text=True, check=True)
  return done.stdout
