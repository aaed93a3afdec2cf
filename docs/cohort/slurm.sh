#!/bin/bash
# A cohort on SLURM: 16 jobs, each with a GPU of its own and every 16th slide.
#
#   sbatch slurm.sh manifest.csv codebook.safetensors /shared/results
#
# Submit it again after a time limit, a node failure or with more slides: what is done is not done again. The
# job that finishes last writes report.html for the whole cohort.
#SBATCH --job-name=fseg-cohort
#SBATCH --array=0-15
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=48G
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

manifest=$1 codebook=$2 results=$3

# exec, so that SLURM's signal reaches fseg: it clears away the slide it is at and ends.
exec fseg cohort "$manifest" -o "$results" --codebook "$codebook" --encoder uni --dtype bfloat16 \
    --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT" \
    --threads "$SLURM_CPUS_PER_TASK"
