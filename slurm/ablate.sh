#!/usr/bin/env bash
# Ablations:  sbatch slurm/ablate.sh NAME EXPERIMENT [section.key=value ...]
# An array job whose tasks share the variants of one table; `sbatch --array=0-15 ...` asks for more
# tasks, `--array=0-7%2` for two at a time. The same command goes on where a job was stopped, with
# any number of tasks. Each task trains on the GPUs of one node. Options of the command may follow.
#SBATCH --job-name=signfuse-ablate
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=240G
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.log
[ -f slurm/environment.sh ] || { echo "error: $PWD is not the project's folder: submit from there, or with --chdir" >&2; exit 2; }
source slurm/environment.sh
[ $# -ge 2 ] || { echo "usage: sbatch slurm/ablate.sh NAME EXPERIMENT [section.key=value ...]" >&2; exit 2; }
number_task ablate
name_job ablate "$@"
exec python -m signfuse_dist.jobs.batch "${container[@]}" signfuse ablate "$@" \
  --task-id "$task_id" --num-tasks "$num_tasks"
