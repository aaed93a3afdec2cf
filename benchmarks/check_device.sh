#!/usr/bin/env bash
# Checks an accelerator in under ten minutes: benchmarks first, then the tests that say something new there.
#
#   benchmarks/check_device.sh RESULTS [WHEELS]
#
# RESULTS gets the logs, what was measured, and the page of CPU and accelerator. WHEELS is a folder that
# benchmarks/pack_wheels.sh made, or an archive of the packages in it; they are put on the path, and nothing is
# installed. BENCHMARK_SECONDS and TEST_SECONDS bound the two parts; what was measured until then is kept.
set -uo pipefail
results=$(realpath -m "$1") wheels=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
mkdir -p "$results"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONPATH=$PWD
if [ -n "$wheels" ]; then
  packages=$(mktemp -d)
  if [ -d "$wheels" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$packages" "$wheels"/*.whl || exit
  else
    tar -xf "$wheels" -C "$packages" || exit
  fi
  PYTHONPATH=$PWD:$packages
fi
python3 -c 'import jax; print(jax.__version__, jax.devices())' | tee "$results/device.txt"
echo "— benchmarks"
timeout "${BENCHMARK_SECONDS:-330}" python3 -m benchmarks --device >"$results/benchmarks.log" 2>&1
code=$?
tail -n 40 "$results/benchmarks.log"
echo "— tests"
timeout "${TEST_SECONDS:-230}" python3 -m pytest -n "$((($(nproc) + 1) / 2))" -q -p no:cacheprovider --maxfail 30 --durations 5 \
  -m 'device and not long' tests/numerics tests/methods tests/encoders >"$results/tests.log" 2>&1 || code=$?
tail -n 40 "$results/tests.log"
python3 -m benchmarks.devices
cp benchmarks/results/device_*.json benchmarks/results/devices.md "$results" 2>/dev/null
exit "$code"
