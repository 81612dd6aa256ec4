#!/bin/bash
# LoRA fine-tuning under Slurm, ranks started by Open MPI's mpirun: where srun --mpi=list does not name pmix.
#   sbatch jobs/slurm_mpirun.sh input/my_run.toml [--train.lr=1e-4 ...]
#SBATCH --job-name=utrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
# On GPU nodes, one GPU a rank: take away one # below.
##SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
# Set what your site asks for: #SBATCH --account=..., --partition=...
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
# module load openmpi hdf5      # the ones ./utrain was built with
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# Bad input costs seconds, not an allocation.
mpirun -np 1 ./utrain "$@" --check
mpirun -np "$SLURM_NTASKS" --map-by "slot:PE=$OMP_NUM_THREADS" --bind-to core ./utrain "$@"
