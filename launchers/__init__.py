"""Running the steps of the method, on this machine or on a Slurm cluster. Imports no torch."""
