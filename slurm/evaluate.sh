#!/usr/bin/env bash
# Evaluation:  sbatch slurm/evaluate.sh RUN --split SPLIT [--name NAME]
# Translates and scores a split with all GPUs, then writes the report. RUN is a run folder, such as
# runs/EXPERIMENT/finetune.
#SBATCH --job-name=signfuse-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=240G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
[ -f slurm/environment.sh ] || { echo "error: $PWD is not the project's folder: submit from there, or with --chdir" >&2; exit 2; }
source slurm/environment.sh
usage="usage: sbatch slurm/evaluate.sh RUN --split SPLIT [--name NAME] [evaluation.KEY=VALUE ...]"
[ $# -ge 3 ] || { echo "$usage" >&2; exit 2; }
name_job evaluate "$@"
prepare_launchers
"${launchers[@]}" -m signfuse_dist.cli evaluate "$@"
report=("${@:1:3}") # without the settings of decoding
[ "${4:-}" != --name ] || report+=("${@:4:2}")
exec "${container[@]}" signfuse report "${report[@]}"
