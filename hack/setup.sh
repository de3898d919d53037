#!/usr/bin/env bash
# Prepares this checkout: a virtual environment in .venv with the pinned dependencies, and the one
# system tool the development cluster needs (bubblewrap). Says what it does; a second run with
# nothing changed does nothing (see `make setup`, which compares time stamps).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
  else return 1; fi
}

# debian_package COMMAND PACKAGE WHY: installs PACKAGE where COMMAND is missing and we are allowed to.
debian_package() {
  command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || fail "$1 is missing ($3); install it with your package manager and run this again"
  say "installing $2 ($3)"
  as_root sh -c "apt-get install -y -q --no-install-recommends $2 || { apt-get update -q && apt-get install -y -q --no-install-recommends $2; }" \
    >build/setup-apt.log 2>&1 ||
    fail "$1 is missing ($3) and could not be installed (build/setup-apt.log); run: sudo apt-get install $2"
}

# Asked to run, not only looked for: pyenv puts shims on PATH for versions that it does not use here.
usable_python() {
  for python in python3.12 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      printf '%s' "$python"
      return
    fi
  done
  return 1
}

mkdir -p build
[ "$(uname -s)" = Linux ] || fail "the development cluster runs on Linux only; this is $(uname -s)"
debian_package bwrap bubblewrap "runs the pods of the development cluster"
if [ "${1:-}" = "--test-tools" ]; then
  if ! command -v prometheus >/dev/null; then
    debian_package prometheus prometheus "the dashboard's queries are tried against a real Prometheus"
    # The package also starts a server, which nobody here asked for.
    [ ! -d /run/systemd/system ] || as_root systemctl disable --quiet --now prometheus
  fi
  .venv/bin/python tests/support/versitygw.py >/dev/null ||
    fail "the S3 server of the tests could not be built; what Go said is above"
  .venv/bin/python tests/support/fake_gcs.py >/dev/null ||
    fail "the Cloud Storage server of the tests could not be built; what Go said is above"
  exit 0
fi

if command -v uv >/dev/null; then uv=uv
else
  python=$(usable_python) || fail "no Python 3.11 or 3.12 on PATH (tried python3.12, python3.11 and python3)"
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install -q --upgrade uv
  uv=.venv/bin/uv
fi
[ -x .venv/bin/python ] || { say "creating .venv"; $uv venv -q --python '>=3.11,<3.13' .venv; }
say "installing pinned dependencies into .venv (PyTorch brings about 5 GB; once per machine and version)"
$uv pip install -q --python .venv/bin/python --constraint constraints.txt --editable '.[dev]'
touch .venv/.ready
say "ready: .venv/bin/daybreak --help"
