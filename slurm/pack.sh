#!/usr/bin/env bash
# Packing:  sbatch slurm/pack.sh CORPUS --root DIR --split S --out DIR [option of `signfuse pack` ...]
# An array job whose tasks share the shards; `sbatch --array=0-31 --cpus-per-task 32 ...` asks for
# more. The same command goes on where a job was stopped, with any number of tasks: the shards do not
# depend on it. The task that finishes last writes the manifest.
#SBATCH --job-name=signfuse-pack
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.log
[ -f slurm/environment.sh ] || { echo "error: $PWD is not the project's folder: submit from there, or with --chdir" >&2; exit 2; }
source slurm/environment.sh
[ $# -ge 1 ] || { echo "usage: sbatch slurm/pack.sh CORPUS --root DIR --split S --out DIR" >&2; exit 2; }
number_task pack
name_job pack "$@"
exec "${container[@]}" signfuse pack --workers "${SLURM_CPUS_PER_TASK:-1}" \
  --task-id "$task_id" --num-tasks "$num_tasks" "$@"
