#!/bin/bash
# A chain of jobs, each continuing where the one before stopped: where the site allows no requeue. On a login node:
#   jobs/chain.sh 5 jobs/one_node.sh input/my_run.toml [--train.lr=1e-4 ...]
# Each begins once the one before is over, however it ended (afterany). When a job finishes the run, or ends with a fault that
# the next would meet again (exit codes 2 to 5), it cancels the rest. Options for sbatch: SBATCH_ACCOUNT=... before the command.
set -euo pipefail
if (($# < 3)) || [[ ! $1 =~ ^[1-9][0-9]?$ || ! -f $2 ]]; then
  echo "usage: jobs/chain.sh N JOB_SCRIPT input.toml [--section.key=value ...]      N: 1 to 99 jobs" >&2
  exit 2
fi
n_jobs=$1 script=$2
shift 2
name=utrain-$(date +%m%d-%H%M%S)-$$  # by which a job finds the rest of its chain
previous=""
for ((i = 1; i <= n_jobs; ++i)); do
  id=$(sbatch --parsable --job-name="$name" --export=ALL,UTRAIN_CHAIN=yes ${previous:+"--dependency=afterany:$previous"} \
    "$script" "$@")
  previous=${id%%;*}
  echo "job $previous: $i of $n_jobs"
done
echo "to cancel all: scancel --name=$name"
