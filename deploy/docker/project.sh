#!/usr/bin/env bash
# Installs Headrace itself into the environment that dependencies.sh made, and checks
# that everything in it fits together. Needs no network.
#
#   deploy/docker/project.sh PREFIX
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

prefix="${1:?usage: deploy/docker/project.sh PREFIX}"
pip() { "$prefix/bin/python" -m pip --disable-pip-version-check "$@"; }

pip install --no-index --no-deps --no-build-isolation .
pip check
