"""Run the steps of the method here or on a Slurm cluster; import no torch."""
