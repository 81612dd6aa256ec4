#!/bin/bash
# LoRA fine-tuning under Slurm, ranks started by srun.      sbatch jobs/slurm_srun.sh input/my_run.toml [--train.lr=1e-4 ...]
#SBATCH --job-name=utrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
# On GPU nodes, one GPU a rank: take away one # below, and add --gpu-bind=none to srun: NCCL wants all GPUs of the node visible to a rank.
##SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
# Set what your site asks for: #SBATCH --account=..., --partition=...
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
# module load openmpi hdf5      # the ones ./utrain was built with
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # since Slurm 22.05 srun does not take it from the job
export OMP_NUM_THREADS="$SRUN_CPUS_PER_TASK"

# Bad input costs seconds, not an allocation.
srun --mpi=pmix --ntasks=1 --nodes=1 ./utrain "$@" --check
srun --mpi=pmix --cpu-bind=cores --kill-on-bad-exit=1 ./utrain "$@"
