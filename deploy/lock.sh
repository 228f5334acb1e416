#!/usr/bin/env bash
# Writes every lock file: exact versions with SHA-256 hashes, for Linux, any processor
# and any Python from 3.11 on. Versions that are locked already stay as they are unless
# UPGRADE is set. `make lock` runs this with the uv of .venv-lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

options=(
  --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url
  --custom-compile-command "make lock"
)
[[ -z "${UPGRADE:-}" ]] || options+=(--upgrade)

# compile OUTPUT SOURCE...
compile() {
  local output="$1"
  shift
  printf '%s\n' "$output"
  .venv-lock/bin/uv pip compile "${options[@]}" --output-file "$output" "$@"
}

compile requirements.lock pyproject.toml --group build
# Under the versions of requirements.lock, so that tests run with what is served.
compile requirements-dev.lock pyproject.toml --group build --group dev --constraint requirements.lock
for input in deploy/locks/*.in; do
  compile "${input%.in}.lock" "$input"
done
