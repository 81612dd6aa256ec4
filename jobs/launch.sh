# shellcheck shell=bash
# What the job scripts in this folder share; they source it. One file, so that a copy of a script cannot be left behind with
# an old way of stopping: copy the folder, not a script. It runs in the submit directory, where ./utrain is: the source tree, or
# the folder of a bundle.
#   launch_with=srun|mpirun   who starts the ranks: mpirun where `srun --mpi=list` does not name pmix
#   most_requeues=N           how often Slurm may start this job again
: "${launch_with:=srun}" "${most_requeues:=20}"
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}" || exit 2
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # since Slurm 22.05 srun does not take it from the job
export OMP_NUM_THREADS="$SRUN_CPUS_PER_TASK"
nodes=${SLURM_JOB_NUM_NODES:-1}
utrain=${UTRAIN:-./utrain} rank_environment=(env)
[[ -n ${UTRAIN:-} || -e ./utrain ]] || utrain=$PWD/bin/utrain
# What a bundle's env sets is for the ranks and their mpirun alone: Slurm's commands keep to their own libraries.
if [[ $utrain == */bin/utrain && -f ${utrain%/bin/utrain}/env ]]; then
  # shellcheck source=/dev/null
  mapfile -t changed < <(comm -13 <(env | sort) <(source "${utrain%/bin/utrain}/env" && env | sort))
  rank_environment+=("${changed[@]}")
fi
read -ra mpirun_flags <<<"${UTRAIN_MPIRUN_FLAGS:---map-by slot:PE=$OMP_NUM_THREADS --bind-to core}"
ranks_pid="" warned="" terminated=""

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"; }

# Slurm's warning (--signal=B:USR1@...) comes to this shell alone; srun and mpirun hand it on to every rank.
trap 'warned=yes; say "told to stop"; [[ -z $ranks_pid ]] || kill -USR1 "$ranks_pid" 2>/dev/null' USR1
# At scancel, at the limit, at a node's end: Slurm tells the ranks itself; this shell outlives them to know their exit code.
trap 'terminated=yes; say "terminated by Slurm"' TERM

# ranks N COMMAND...: returns the exit code of the ranks.
ranks() {
  local count=$1 code
  shift
  case $launch_with in
    # --gpu-bind=none: every rank sees all GPUs of its node and takes its own; without it NCCL loses NVLink.
    # No --kill-on-bad-exit: ranks that stop after a save leave one after the other, and the first one's 75 would kill the
    # rest (143). A rank that dies is noticed by PMIx within two seconds; --wait ends what PMIx does not see.
    srun)
      srun --mpi=pmix --ntasks="$count" --nodes="$((count < nodes ? count : nodes))" --cpu-bind=cores --gpu-bind=none \
        --kill-on-bad-exit=0 --wait=60 "${rank_environment[@]}" "$@" &
      ;;
    mpirun) "${rank_environment[@]}" mpirun -np "$count" "${mpirun_flags[@]}" "$@" & ;;
    *) say "launch_with=$launch_with: srun or mpirun"; return 2 ;;
  esac
  ranks_pid=$!
  while kill -0 "$ranks_pid" 2>/dev/null; do wait "$ranks_pid" || true; done  # a trapped signal ends `wait` early
  code=0
  wait "$ranks_pid" || code=$?
  ranks_pid=""
  return "$code"
}

# train input.toml [--section.key=value ...]: check, run, and again when the run was stopped before its end. Does not return.
train() {
  local code=0
  if [[ ${SLURM_JOB_ACCOUNT:-} == your_account ]]; then
    say "no account: set #SBATCH --account in the job script, or delete the line where your site has none"
    exit 2
  fi
  # On one task: bad input costs seconds, not the allocation.
  ranks 1 "$utrain" "$@" --check --ranks="$SLURM_NTASKS" || code=$?
  if [[ -n $warned ]]; then
    code=75  # told to stop before the run began
  elif ((code != 0)); then
    say "the check ended with exit code $code"
  else
    ranks "$SLURM_NTASKS" "$utrain" "$@" || code=$?
    say "utrain ended with exit code $code"
  fi
  case $code in
    75) again ;;                # stopped, all saved
    0 | 2 | 3 | 4 | 5) last ;;  # done, or a fault that another start would meet again
  esac
  exit "$code"
}

again() {
  # What the user cancelled stays cancelled, and what Slurm preempts it requeues itself.
  if [[ -n $terminated && $(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" --format=%r) != TimeLimit ]]; then
    say "saved; not started again from here"
  elif [[ -n ${UTRAIN_CHAIN:-} ]]; then
    say "the next job of the chain goes on"
  elif ((${SLURM_RESTART_COUNT:-0} >= most_requeues)); then
    say "started again $most_requeues times already; submit it once more to go on"
  elif ! scontrol requeue "$SLURM_JOB_ID"; then
    say "could not be put back into the queue; submit it again to go on"
  else
    say "back in the queue"
  fi
}

# What is left of the chain has nothing to do.
last() { [[ -z ${UTRAIN_CHAIN:-} ]] || scancel --state=PENDING --user="$(id -un)" --name="$SLURM_JOB_NAME"; }
