#!/usr/bin/env bash
# Packs what a machine with an accelerator lacks, which has JAX, NumPy and SciPy and no network: a folder of wheels
# of this checkout and its dependencies, for Linux on x86-64.
#
#   benchmarks/pack_wheels.sh FOLDER [PYTHON_VERSION]      # here
#   pip install --no-index --no-deps FOLDER/*.whl          # there, and then: python -m benchmarks --device
set -euo pipefail
folder=$1 version=${2:-3.12}
there='^(jax|jaxlib|numpy|scipy)-'  # are there already, with their plugin for the accelerator
cd "$(dirname "$0")/.."
mkdir -p "$folder"
pip wheel --quiet --no-deps --wheel-dir "$folder" .
platforms=()
for glibc in 28 27 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
pip download --quiet --dest "$folder" --only-binary :all: --python-version "$version" \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform linux_x86_64 "$folder"/fseg_jax-*.whl 'beartype>=0.20' 'pytest>=8.3' 'hypothesis>=6.130' 'chex>=0.1.89'
(cd "$folder" && ls | grep -E "$there" | xargs -r rm)
du -sh "$folder"
