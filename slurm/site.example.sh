# What one cluster needs. Copy this to slurm/site.sh (which git ignores) and keep the lines that are
# yours: slurm/environment.sh sources it in every batch script, with `set -e`, in the project's folder.

# Modules, or conda. An environment in .venv of the project's folder is found without.
# module purge
# module load python/3.11 cuda/12.8
# source "$HOME/miniforge3/etc/profile.d/conda.sh" && conda activate signfuse

# A container. The words stand before every command that computes: `bash` with `accelerate` on each
# node, and `signfuse`. The program that stops and requeues a job (signfuse_dist/jobs) stays outside,
# for it calls srun and scontrol: it needs a Python 3.10 or newer with numpy, pydantic, PyYAML, tqdm
# and universal-pathlib, and no torch. Name every disk that holds the project, shards or models, and
# the node's own where data.stage_to is set.
# image="$HOME/signfuse.sif"
# container=(apptainer exec --nv --pwd "$PWD" --bind "$PWD,/scratch" "$image")

# The network between the nodes: the one place for NCCL's and gloo's settings. `ip -br address` and
# `ibstat` on a node name what there is; slurm/check_nodes.sh measures what the choice gives.
# export NCCL_SOCKET_IFNAME=ib0      # interface of NCCL's sockets, and where they meet
# export GLOO_SOCKET_IFNAME=ib0      # the same for gloo, which counts clips and steps
# export NCCL_IB_HCA=mlx5            # adapters of InfiniBand, by the beginning of their names
# export NCCL_DEBUG=WARN             # INFO says which way NCCL has chosen

# Where processes write what they drop at once.
# export TMPDIR="${SLURM_TMPDIR:-/tmp}"
