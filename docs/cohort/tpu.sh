#!/bin/bash
# A cohort on the hosts of a TPU slice: each host does every n-th slide, with a process for each of its chips.
#
#   gcloud compute tpus tpu-vm ssh SLICE --worker=all --command "$(cat tpu.sh)"
#
# on a slice whose hosts have the package (pip install '.[tpu]' in a checkout, or the wheel that python -m build makes of
# one) and see the slides at the same path. Run it again after a preemption: what is done is not done again. Hosts need
# not know of each other, and none waits for another.
set -euo pipefail

# Every TPU host is told its number, and the slice's hosts.
ask() { curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
host=$(ask agent-worker-number)
hosts=$(ask worker-network-endpoints | tr ',' '\n' | wc -l)

exec fseg cohort gs://BUCKET/manifest.csv -o gs://BUCKET/results --codebook /slides/codebook.safetensors \
    --encoder uni --dtype bfloat16 --shard "$host/$hosts"
