#!/bin/bash
# Train a recipe on several machines of a SLURM cluster, one torchrun a machine. From the repository:
#
#   sbatch --nodes 4 docs/examples/slurm.sh recipes/onevision-7b.toml --out runs/onevision parallel=shard
#
# Submitted again it goes on from the last checkpoint, on any number of machines. --out, the data and PUMICE_CACHE must
# lie where all machines see them. Tried with two torchruns over gloo on one machine and stand-ins for SLURM's commands;
# not on a cluster, and not on GPUs.
#SBATCH --job-name=pumice
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
set -euo pipefail

export PUMICE_CACHE="${PUMICE_CACHE:-$PWD/cache}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# SLURM sends SIGTERM ten minutes before the end: the run stops after its step, with a checkpoint. torchrun would kill it
# after 30 seconds.
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${WORKERS:-8}" --shutdown-timeout 540 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" \
    -m pumice.cli train "$@"
