#!/usr/bin/env bash
# Stage 2 (alignment):  sbatch slurm/stage2.sh EXPERIMENT [section.key=value ...]
# Four GPUs as in Table 2; `sbatch --nodes 2 --gpus-per-node 8 ...` asks for others. Five minutes
# before the time is over the stage writes a checkpoint, and the job is requeued. The same command
# resumes a stage that was stopped.
#SBATCH --job-name=signfuse-alignment
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=240G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
[ -f slurm/environment.sh ] || { echo "error: $PWD is not the project's folder: submit from there, or with --chdir" >&2; exit 2; }
source slurm/environment.sh
train_stage alignment "$@"
