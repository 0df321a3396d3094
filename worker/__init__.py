"""Train one job on a gang of ranks. `worker.contract` and `worker.gang` are torch-free; the rest runs inside the ranks."""
