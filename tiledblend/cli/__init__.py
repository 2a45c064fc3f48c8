"""The command line: flags become the mapping of a job file, and nothing else."""
