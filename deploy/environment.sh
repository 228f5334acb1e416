#!/usr/bin/env bash
# Makes the Python environments that the Makefile's targets run in.
#
#   deploy/environment.sh runtime    .venv with what `headrace serve` needs
#   deploy/environment.sh dev        .venv with tests and linters as well
#   deploy/environment.sh openai2    .venv-openai2 with the older OpenAI SDK
#   deploy/environment.sh lock       .venv-lock with uv
#   deploy/environment.sh build      .venv-build with the tools that build llama-server
#
# Read from the environment:
#   PYTHON                       interpreter for new environments (default: the first
#                                of python3, python3.14 ... python3.11 that is new enough)
#   CMAKE_ARGS                   added to the build of llama.cpp; remembered for the next
#                                run, so unset means "as last time" and empty means "none"
#   CMAKE_BUILD_PARALLEL_LEVEL   compile jobs (default: all processors)
#
# An environment is ready when it holds a stamp with the hash of everything that went
# into it. The stamp goes before the first change and comes back after the last one, so
# an interrupted install is taken up again, and a finished one costs milliseconds.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
LOCKS="$ROOT/deploy/locks"
CACHE="${XDG_CACHE_HOME:-${HOME:-$ROOT/.venv-state}/.cache}/headrace"
cd "$ROOT"
# Each of these would send packages somewhere else than into the environment.
unset PIP_USER PIP_TARGET PIP_PREFIX PYTHONHOME PYTHONPATH

# Only the libraries: no multimodal library, no command line programs, no web page, and
# no OpenSSL, which llama.cpp would use for downloads of its own if it happened to find it.
LEAN_CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
-DLLAMA_OPENSSL=OFF"

say() { printf 'headrace: %s\n' "$*" >&2; }
die() {
  say "$1"
  shift
  (($# == 0)) || printf '          %s\n' "$@" >&2
  exit 1
}

hash_of() { sha256sum | cut -c1-16; }

# Major and minor version of an interpreter; nothing when it does not run.
version_of() {
  "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

new_enough() { [[ "$1" =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= 11)); }

find_python() {
  local candidate version seen=""
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    version="$(version_of "$candidate")"
    if new_enough "$version"; then
      printf '%s\n' "$candidate"
      return
    fi
    seen+="${version:+ $candidate is $version}"
    [[ -n "$version" || -z "${PYTHON:-}" ]] || seen+=" $candidate does not run"
  done
  die "Python 3.11 or newer is needed;${seen:- none was found}." \
    "Debian 12+, Ubuntu 24.04+: sudo apt install python3 python3-venv" \
    "Somewhere else already?    make serve PYTHON=/path/to/python3.12"
}

# llama.cpp is compiled for this processor (GGML_NATIVE) and against this release's C
# library. What was built for others may not start, and homes are shared among machines
# and containers, so both belong to the hash.
machine() {
  uname -m
  grep -E '^(ID|VERSION_ID)=' /etc/os-release 2>/dev/null || true
  grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null |
    grep -oE '\b(sse4_[12]|avx[a-z0-9_]*|amx_[a-z0-9]+|fma|f16c|bmi[12]|asimd[a-z]*|sve[a-z0-9]*|sme[a-z0-9]*|i8mm|bf16|fphp)\b' |
    sort -u || true
}

# CMake arguments of the user: from the environment, else those of the last build.
user_cmake_args() {
  if [[ -v CMAKE_ARGS ]]; then
    printf '%s\n' "$CMAKE_ARGS"
  elif [[ -f .venv/.cmake-args ]]; then
    cat .venv/.cmake-args
  fi
}

# The lines of one package in a lock file.
pinned() {
  awk -v name="$1==" 'index($0, name) == 1 {on = 1} on {print} on && !/\\$/ {exit}' "$2"
}

# What a build of llama.cpp depends on; comments of the lock files are no part of it.
build_key() {
  {
    pinned llama-cpp-python requirements.lock | grep -v '^ *#'
    grep -v '^ *#' "$LOCKS/build.lock"
    printf '%s\n' "$LEAN_CMAKE_ARGS" "$(user_cmake_args)"
    machine
  } | hash_of
}

# stamp_key VENV FILE...: hash of the files, this script, this place and the interpreter.
stamp_key() {
  local venv="$1"
  shift
  { printf '%s\n' "$ROOT" "$(version_of "$venv/bin/python")"; cat "$@" "${BASH_SOURCE[0]}" "$LOCKS/pip.lock"; } | hash_of
}

is_stamped() { [[ -f "$1" && "$(<"$1")" == "$2" ]]; }

# One installer at a time in this checkout; the lock ends with this process.
take_turn() {
  mkdir -p .venv-state
  exec 9>.venv-state/lock
  if ! flock -n 9; then
    say "another make is installing here; waiting for it."
    flock 9
  fi
}

# An environment keeps its interpreter unless PYTHON asks for another version.
is_wanted_python() {
  [[ -z "${PYTHON:-}" || "$(version_of "$PYTHON")" == "$(version_of "$1/bin/python")" ]]
}

make_venv() {
  local venv="$1" python version
  version="$(version_of "$venv/bin/python")"
  if new_enough "$version" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
    is_wanted_python "$venv"; then
    return
  fi
  python="$(find_python)"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python cannot make virtual environments: its venv module is missing." \
      "Debian, Ubuntu: sudo apt install python$(version_of "$python")-venv"
  say "making $venv with $python ($(version_of "$python"))."
  rm -rf "$venv"
  "$python" -m venv "$venv"
}

pip_in() {
  local venv="$1"
  shift
  "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

install_pip() {
  pip_in "$1" install --quiet --require-hashes -r "$LOCKS/pip.lock"
}

need_compiler() {
  local name
  for name in "${CXX:-}" c++ g++ clang++; do
    [[ -z "$name" ]] || ! command -v "${name%% *}" >/dev/null || return 0
  done
  die "a C++ compiler is needed to build llama.cpp; none was found." \
    "Debian, Ubuntu: sudo apt install g++"
}

# The one package that is compiled. pip would keep its wheel by Python version, and know
# neither CMAKE_ARGS nor the machine. Ours is kept by what it depends on: the next
# environment takes seconds, and a CUDA build never gets a wheel that was made without.
build_llama_cpp() {
  local folder="$1" args="$2"
  say "building llama.cpp${args:+ with $args}: 5 to 10 minutes on two cores, the first time."
  rm -rf .venv-state/wheels
  pinned llama-cpp-python requirements.lock >.venv-state/llama-cpp-python.lock
  CMAKE_ARGS="$LEAN_CMAKE_ARGS $args" \
    CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" \
    pip_in .venv wheel --no-deps --no-cache-dir --require-hashes --wheel-dir .venv-state/wheels \
    --build-constraint "$LOCKS/build.lock" -r .venv-state/llama-cpp-python.lock
  mkdir -p "$folder"
  # Renamed in place: another checkout must not find half a wheel.
  cp .venv-state/wheels/llama_cpp_python-*.whl "$folder/part.$$"
  mv "$folder/part.$$" "$folder/$(basename .venv-state/wheels/llama_cpp_python-*.whl)"
  rm -rf .venv-state/wheels
}

# The wheel for this key is installed already, or waits in the cache.
is_built() {
  local key
  key="$(build_key)"
  is_stamped .venv/.stamp-llama "$key" || compgen -G "$CACHE/wheels/$key/*.whl" >/dev/null
}

install_llama_cpp() {
  local key args folder
  key="$(build_key)"
  args="$(user_cmake_args)"
  if is_stamped .venv/.stamp-llama "$key"; then
    return
  fi
  folder="$CACHE/wheels/$key"
  compgen -G "$folder/*.whl" >/dev/null || build_llama_cpp "$folder" "$args"
  rm -f .venv/.stamp-llama
  # Its own dependencies come with the lock file, right after.
  pip_in .venv install --quiet --no-deps --no-index --force-reinstall "$folder"/*.whl
  printf '%s\n' "$args" >.venv/.cmake-args
  printf '%s\n' "$key" >.venv/.stamp-llama
}

DEV_LOCKS=(requirements-dev.lock deploy/locks/lint.lock)

main_key() {
  { stamp_key .venv pyproject.toml "$@"; build_key; } | hash_of
}

# main_ready STAMP LOCK...: nothing is to be done for this environment.
main_ready() {
  local stamp=".venv/.stamp-$1"
  shift
  [[ -f "$stamp" ]] && is_wanted_python .venv && is_stamped "$stamp" "$(main_key "$@")"
}

# main_env STAMP LOCK...: .venv with everything the lock files name, and the project.
main_env() {
  local stamp=".venv/.stamp-$1" lock
  if main_ready "$@"; then
    return
  fi
  take_turn
  # Whoever held the lock may have done the work.
  if main_ready "$@"; then
    return
  fi
  shift
  # What is missing is said now, not after minutes of downloads.
  is_built || need_compiler
  make_venv .venv
  rm -f .venv/.stamp-runtime .venv/.stamp-dev
  install_pip .venv
  install_llama_cpp
  for lock in "$@"; do
    say "installing what $lock names."
    pip_in .venv install --quiet --require-hashes -r "$lock"
  done
  pip_in .venv install --quiet --no-deps --no-build-isolation --editable .
  main_key "$@" >"$stamp"
}

# side_env VENV LOCK: a small environment that holds only what its lock file names.
side_env() {
  local venv="$1" lock="$2"
  if is_stamped "$venv/.stamp" "$(stamp_key "$venv" "$lock")"; then
    return
  fi
  take_turn
  make_venv "$venv"
  rm -f "$venv/.stamp"
  install_pip "$venv"
  pip_in "$venv" install --quiet --require-hashes -r "$lock"
  stamp_key "$venv" "$lock" >"$venv/.stamp"
}

trap 'say "stopped; run the same command again to go on."; exit 130' INT TERM

case "${1:-}" in
  runtime)
    # The dev environment holds all of the runtime one.
    main_ready dev "${DEV_LOCKS[@]}" || main_env runtime requirements.lock
    ;;
  dev) main_env dev "${DEV_LOCKS[@]}" ;;
  openai2) side_env .venv-openai2 deploy/locks/openai2.lock ;;
  lock) side_env .venv-lock deploy/locks/resolver.lock ;;
  build) side_env .venv-build deploy/locks/build.lock ;;
  *) die "usage: deploy/environment.sh runtime|dev|openai2|lock|build" ;;
esac
