"""Starting the stages: on this machine, or as Slurm jobs that are stopped, requeued and given up.

Nothing here imports torch but what counts GPUs: this runs in batch scripts and on login nodes.
"""
