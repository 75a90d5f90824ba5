# Sourced by every script here, in the batch shell: where the project is, and how processes that
# train meet.
# Submit from the project's folder. Override anything with the environment or `sbatch --option`.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the project folder}"
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # compute nodes have no network: download beforehand

# Where the processes of a stage meet: the address of the first node, for its name need not resolve
# everywhere.
choose_meeting_point() {
  local first_node
  first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_ADDR=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1)
  MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
  GPUS_PER_NODE="${SLURM_GPUS_ON_NODE:-1}"
  export GPUS_PER_NODE MASTER_ADDR MASTER_PORT
}

# train_stage STAGE EXPERIMENT [section.key=value ...]: one launcher a node.
train_stage() {
  local stage=$1
  shift
  [ $# -ge 1 ] || { echo "usage: sbatch slurm/${stage}.sh EXPERIMENT [section.key=value ...]" >&2; exit 2; }
  local experiment=$1
  shift
  choose_meeting_point
  # The words reach the launcher as arguments; none of them is ever read by a shell again.
  srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file launch/cluster_zero2.yaml \
      --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
      --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
      --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
      -m signfuse_dist.train "$@"' launcher "$experiment" "stage=$stage" "$@"
}
