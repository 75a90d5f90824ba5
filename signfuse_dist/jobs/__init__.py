"""Starting the stages: on this machine, or as Slurm jobs that are stopped, requeued and given up.

Nothing here imports torch, but for counting GPUs: it runs in the batch script and on the login node.
"""
