#!/usr/bin/env bash
# Makes a virtual environment with everything Headrace needs, but not Headrace itself:
# the long build step of Dockerfile.gpu, which also runs outside Docker. It depends on
# the lock files only, so that a change of the program does not compile llama.cpp again.
#
#   deploy/docker/dependencies.sh PREFIX [WHEELHOUSE]
#
# PREFIX is the environment to make. With a WHEELHOUSE that holds packages nothing is
# fetched from a network. All packages are checked against the lock files either way.
#
# Read from the environment:
#   PYTHON                       interpreter (default: python3)
#   CMAKE_ARGS                   added to the build of llama.cpp
#   CMAKE_BUILD_PARALLEL_LEVEL   compile jobs (default: all processors)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

prefix="${1:?usage: deploy/docker/dependencies.sh PREFIX [WHEELHOUSE]}"
wheelhouse="${2:-}"

if [[ -n "$wheelhouse" && -n "$(find "$wheelhouse" \( -name '*.whl' -o -name '*.tar.gz' \) -print -quit)" ]]; then
  wheelhouse="$(cd "$wheelhouse" && pwd)"
  printf 'packages come from %s\n' "$wheelhouse"
  # Not as options: the environment also reaches pip's own build environments.
  export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheelhouse"
fi

# GGML_NATIVE off: the image must run on other processors than the one that built it.
# llama.cpp then takes its fixed set for x86-64 (SSE4.2, AVX, AVX2, BMI2, FMA, F16C),
# which every server since 2013 (Haswell) and 2017 (Zen) has. Its choice at run time
# among several CPU builds needs backends that load by name, which llama-cpp-python
# does not ask for. More for your own machines: -DGGML_AVX512=ON by CMAKE_ARGS.
export CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
-DLLAMA_OPENSSL=OFF -DGGML_NATIVE=OFF ${CMAKE_ARGS:-}"
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

"${PYTHON:-python3}" -m venv "$prefix"
pip() { "$prefix/bin/python" -m pip --disable-pip-version-check "$@"; }

pip install --require-hashes -r deploy/locks/pip.lock
# A wheel in pip's cache may have been built with other CMAKE_ARGS: not for this one.
pip install --require-hashes --no-cache-dir --no-deps \
  --build-constraint deploy/locks/build.lock -r requirements.lock

# The wheel holds every library six times: for C++ programs as well, which nothing here
# is, and with its names for versions as copies, for a wheel has no links. With CUDA that
# would be gigabytes.
packages="$(echo "$prefix"/lib/python3.*/site-packages)"
rm -rf "${packages:?}/lib" "${packages:?}/include"
for library in "$packages"/llama_cpp/lib/*.so; do
  for copy in "$library".*; do
    if cmp --silent "$library" "$copy"; then
      ln -sf "$(basename "$library")" "$copy"
    fi
  done
done
