# Functions that make and fill virtual environments; sourced by the other scripts, not run.
#
#   find_python [VERSION]        prints a Python of at least 3.11 (or of VERSION exactly), or fails
#   make_venv VENV PYTHON        makes VENV, or checks the one that is there
#   state_of LOCK...             prints what an installation depends on; the same text means nothing to install
#   lock_of VENV [EXTRAS]        prints the lock of VENV's Python, if there is one
#   install VENV EXTRAS LOCK...  installs the repository with EXTRAS unless nothing changed since the last time

say() { echo "$(basename "$0"): $*" >&2; }
fail() { say "$*"; exit 1; }

# Succeeds if Python $1 runs and is at least 3.11, or is of version $2 exactly. A shim may exist and still not run.
python_fits() {
  "$1" -c 'import sys
want = tuple(int(part) for part in sys.argv[1].split(".")) if sys.argv[1] else None
sys.exit(not (sys.version_info[:2] == want if want else sys.version_info >= (3, 11)))' "${2:-}" >/dev/null 2>&1
}

find_python() {
  local want=${1:-} candidate
  local -a candidates=()
  if [[ -n ${PYTHON:-} && -z $want ]]; then candidates+=("$PYTHON"); fi
  if [[ -n $want ]]; then candidates+=("python$want"); else candidates+=(python3 python3.{11,12,13,14} python); fi
  # Interpreters of pyenv that are installed and not selected.
  for candidate in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/"${want:-3.}"*/bin/python3; do
    candidates+=("$candidate")
  done
  for candidate in "${candidates[@]}"; do
    if python_fits "$candidate" "$want"; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

make_venv() {
  local venv=$1 python=$2
  if [[ -e $venv ]]; then
    python_fits "$venv/bin/python" || fail "$venv is broken or older than Python 3.11; delete it and run this again"
    return 0
  fi
  "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    fail "$python lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv) and run this again"
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || { rm -rf "$venv"; fail "$python could not make $venv"; }
}

state_of() { pwd; cat setup.py pyproject.toml "$@" | cksum; }

# Prints the lock of a venv's Python as an argument for install, or nothing for a Python without one: that of
# EXTRAS "dev" holds everything, that of "" what a run needs.
lock_of() {
  local venv=$1 extras=${2:-} version file
  version=$("$venv/bin/python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
  file=requirements/$([[ $extras == dev ]] || echo core-)$version.txt
  if [[ -f $file ]]; then
    echo "$file"
  else
    say "there is no lock $file: the newest versions that setup.py allows are installed, without hashes"
  fi
}

# Succeeds if uv is in the venv, installing it first if need be: from its lock, so by its hashes.
have_uv() {
  "$1/bin/python" -m uv --version >/dev/null 2>&1 ||
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt \
      2>/dev/null
}

# Installs with uv, which takes seconds and keeps a cache, or with pip where uv cannot be had. With a lock every
# package must have one of the hashes in it, and nothing else is fetched: the project itself, which has no hash,
# goes in last and alone, built by the setuptools of the lock.
install() {
  local venv=$1 extras=$2 lock stamp state
  shift 2
  stamp=$venv/.installed-${extras:-core}
  state=$(state_of "$@")
  if [[ -f $stamp && $(cat "$stamp") == "$state" ]]; then return 0; fi
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
  say "installing atlas_jax${extras:+[$extras]} into $venv"
  if have_uv "$venv"; then
    install_by "$venv" "$extras" "$@" -- -m uv pip install --python "$venv/bin/python" --quiet &&
      echo "$state" >"$stamp" && return 0
    say "uv could not install it; trying pip, which takes minutes"
  else
    say "uv could not be installed; using pip, which takes minutes"
  fi
  install_by "$venv" "$extras" "$@" -- -m pip install --disable-pip-version-check ||
    fail "installation failed; the lines above say why (a first installation needs a network)"
  echo "$state" >"$stamp"
}

# install_by VENV EXTRAS LOCK... -- ARGUMENTS OF PYTHON...
install_by() {
  local venv=$1 extras=$2
  local -a locks=()
  shift 2
  while [[ $1 != -- ]]; do locks+=(-r "$1"); shift; done
  shift
  if [[ ${#locks[@]} == 0 ]]; then
    "$venv/bin/python" "$@" --editable "$PWD${extras:+[$extras]}"
    return
  fi
  "$venv/bin/python" "$@" --require-hashes "${locks[@]}" &&
    "$venv/bin/python" "$@" --no-deps --no-build-isolation --editable "$PWD"
}
