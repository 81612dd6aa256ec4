#!/bin/bash
# LoRA fine-tuning on one node, one rank a GPU. Set the account, then:
#   sbatch jobs/one_node.sh input/my_run.toml [--train.lr=1e-4 ...]
#SBATCH --job-name=utrain
#SBATCH --account=your_account
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
# GPUs are asked for by node, never by task: NCCL has to see them all. Without GPUs, delete this line.
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# Five minutes before the limit the run is told to save and to stop; then the job goes back into the queue and continues.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# A job that starts again adds to its output.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
# module load openmpi hdf5   # the ones that ./utrain was built with
launch_with=${UTRAIN_LAUNCH:-srun}   # mpirun where `srun --mpi=list` does not name pmix
most_requeues=20
# shellcheck source=jobs/launch.sh
source "${SLURM_SUBMIT_DIR:?start this with sbatch}/jobs/launch.sh"
train "$@"
