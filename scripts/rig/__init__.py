"""The parts of scripts/slurm-rig."""
