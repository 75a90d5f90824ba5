#!/usr/bin/env bash
# Two minutes before days:  sbatch --nodes 4 slurm/check_nodes.sh [--folder DIR ...]
# Starts one process a GPU (one a node without GPUs) as training does, measures the network, compares
# clocks, file systems and versions, and names the node that differs. The log has the table; the job
# fails where there is an error. Folders that all nodes must see: runs and shards, or each --folder.
#SBATCH --job-name=signfuse-check-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=64G
#SBATCH --time=00:10:00
#SBATCH --output=slurm-%j.log
[ -f slurm/environment.sh ] || { echo "error: $PWD is not the project's folder: submit from there, or with --chdir" >&2; exit 2; }
source slurm/environment.sh
mkdir -p runs "$SIGNFUSE_JOBS"
status="$SIGNFUSE_JOBS/check-nodes-$SLURM_JOB_ID"
prepare_launchers
"${launchers[@]}" -m signfuse_dist.preflight.nodes --status "$status" "$@"
read -r found < "$status"
rm "$status"
exit "$found"
