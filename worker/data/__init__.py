"""Data sets by name. Each is a pair of splits, and each sample of a split is a function of the job's seed and the sample's index."""
