#!/bin/bash
# LoRA fine-tuning on several nodes, one rank a GPU. Set the account, then:
#   sbatch --nodes=8 jobs/several_nodes.sh input/my_run.toml [--parallel.strategy=zero3 ...]
#SBATCH --job-name=utrain
#SBATCH --account=your_account
#SBATCH --nodes=2
#SBATCH --exclusive
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
# module load openmpi hdf5                  # the ones that ./utrain was built with
# export NCCL_SOCKET_IFNAME=hsn             # where NCCL finds no way between the nodes: the site's fast network
# export HDF5_USE_FILE_LOCKING=FALSE        # where HDF5 cannot lock files (run.dir has to be on a file system all nodes see)
launch_with=${UTRAIN_LAUNCH:-srun}   # mpirun where `srun --mpi=list` does not name pmix
most_requeues=20
# shellcheck source=jobs/launch.sh
source "${SLURM_SUBMIT_DIR:?start this with sbatch}/jobs/launch.sh"
train "$@"
