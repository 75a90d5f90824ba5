"""Jobs of a cluster: stopping and requeueing them, the guard against crash loops, submitting.

Nothing here imports torch: it runs in the batch script and on the login node.
"""
