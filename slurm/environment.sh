# Sourced by every script here, in the batch shell and in the project's folder: how the processes of
# a job are started. What only one cluster needs (modules, conda, a container, the network's
# interfaces) stands in slurm/site.sh, which is not in git: copy slurm/site.example.sh. Override
# anything else with the environment or `sbatch --option`:
#   LAUNCH                    launch file (default: launch/cluster_zero2.yaml)
#   PROCESSES_PER_NODE        default: the GPUs of a node; on nodes without any, 1
#   SIGNFUSE_JOBS             where jobs keep notes, on a disk that all nodes see
#   SIGNFUSE_FUTILE_ATTEMPTS  a job is given up after so many attempts without a further checkpoint
#   MASTER_PORT               where processes meet, on the first node
set -euo pipefail
trap '' USR1 # Slurm's warning may come before the program that heeds it has started
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # compute nodes have no network: download beforehand
export SIGNFUSE_JOBS="${SIGNFUSE_JOBS:-$PWD/runs/.jobs}"
# Seconds between TERM and KILL of a launcher to its processes: room for a step and a checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}"
# srun no longer takes the number of cores from sbatch by itself (since Slurm 22.05).
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
container=() # what stands before every command that computes: nothing
if [ -f slurm/site.sh ]; then
  set +u # modules and conda read variables that are not set
  source slurm/site.sh
  set -u
fi

# name_job COMMAND word ...: names the job after what it works on, and its log in the folder that it
# writes to; ends here when the words are wrong. Slurm has opened the log before anybody can say.
name_job() {
  python -m signfuse_dist.jobs.logs "$@" || exit
}

# Sets the array `launchers`: the command that starts one launcher a node, to be followed by
# `-m MODULE word ...`. They meet at the address of the first node, for its name need not resolve
# everywhere. The words reach the launchers as arguments; none is ever read by a shell again.
prepare_launchers() {
  local first_node
  first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_ADDR=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1)
  MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
  LAUNCH="${LAUNCH:-launch/cluster_zero2.yaml}"
  PROCESSES_PER_NODE="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
  export LAUNCH MASTER_ADDR MASTER_PORT PROCESSES_PER_NODE
  launchers=(srun --kill-on-bad-exit=1 --ntasks "$SLURM_NNODES" --ntasks-per-node=1
    "${container[@]}" bash -c '
    exec accelerate launch --config_file "$LAUNCH" \
      --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
      --num_processes "$((SLURM_NNODES * PROCESSES_PER_NODE))" \
      --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" "$@"' launcher)
}

# train_stage STAGE EXPERIMENT [section.key=value ...]: stopped, requeued and given up in good order.
train_stage() {
  local stage=$1
  shift
  [ $# -ge 1 ] || { echo "usage: sbatch slurm/stageN.sh EXPERIMENT [section.key=value ...]" >&2; exit 2; }
  local experiment=$1
  shift
  name_job train "$experiment" "stage=$stage" "$@"
  prepare_launchers
  exec python -m signfuse_dist.jobs.batch \
    "${launchers[@]}" -m signfuse_dist.train "$experiment" "stage=$stage" "$@"
}

# number_task SCRIPT: sets `task_id` and `num_tasks`, of a task of an array, counted from 0.
number_task() {
  : "${SLURM_ARRAY_TASK_ID:?submit this script as an array: sbatch --array=0-7 slurm/$1.sh ...}"
  task_id=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / ${SLURM_ARRAY_TASK_STEP:-1}))
  num_tasks=$SLURM_ARRAY_TASK_COUNT
}
