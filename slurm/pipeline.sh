#!/usr/bin/env bash
# All stages and the evaluation, on the login node (this is not for sbatch):
#   bash slurm/pipeline.sh EXPERIMENT [option of sbatch ...] [section.key=value ...]
# Each job starts when the one before has finished, also after it was requeued. A job whose
# predecessor fails is cancelled. Prints the job ids. Options of sbatch hold for every job.
[ -f slurm/environment.sh ] || { echo "error: $PWD is not the project's folder: go there first" >&2; exit 2; }
source slurm/environment.sh
exec python -m signfuse_dist.jobs.pipeline "$@"
