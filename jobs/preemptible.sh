#!/bin/bash
# LoRA fine-tuning in a queue whose jobs make way for others: cheap hours, and the run continues whenever there is room.
# Set account and partition, and in the input file checkpoint.every so that redoing that many steps does not hurt: it is what
# is lost where the queue gives no time to save (scontrol show partition: GraceTime). Then:
#   sbatch jobs/preemptible.sh input/my_run.toml [--checkpoint.every=100 ...]
#SBATCH --job-name=utrain
#SBATCH --account=your_account
#SBATCH --partition=preemptible
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
# GPUs are asked for by node, never by task: NCCL has to see them all. Without GPUs, delete this line.
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Five minutes before the limit the run is told to save and to stop; then the job goes back into the queue and continues.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# A job that starts again adds to its output.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
# module load openmpi hdf5   # the ones that ./utrain was built with
# With srun: when a job has to go, Slurm sends SIGTERM to what srun started, and not to what mpirun started.
launch_with=${UTRAIN_LAUNCH:-srun}
most_requeues=200
# shellcheck source=jobs/launch.sh
source "${SLURM_SUBMIT_DIR:?start this with sbatch}/jobs/launch.sh"
train "$@"
