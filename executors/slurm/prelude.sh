# Stands before every script that runs on the login node. POSIX sh.
# In: NEEDED (variables that job_dir holds), JOB_DIR_WORD (job_dir, quoted). Out: JOB_DIR.

# What is inherited from an allocation around us, or set to the user's taste, must not change what Slurm does
# and prints. SLURM_CONF says where the cluster is.
for name in $(env | sed -n 's/^\(\(SLURM\|SBATCH\|SALLOC\|SRUN\|SCANCEL\|SQUEUE\|SACCT\|SINFO\|SCONTROL\)_[A-Za-z0-9_]*\)=.*/\1/p'); do
    [ "$name" = SLURM_CONF ] || unset "$name"
done

# A command over SSH starts without what a login sets up: ask for what is missing.
command -v sbatch >/dev/null 2>&1 || NEEDED="$NEEDED PATH"
for name in $NEEDED; do
    eval "value=\${$name-}"
    if [ -z "$value" ] || [ "$name" = PATH ]; then
        value=$(bash -lc 'printf "\n%s\n" "${!1}"' bash "$name" </dev/null 2>/dev/null | tail -n 1)
    fi
    [ -n "$value" ] || { echo "job_dir: \$$name is not set on $(hostname), in a login shell neither" >&2; exit 96; }
    eval "$name=\$value; export $name"
done
if ! command -v sbatch >/dev/null 2>&1; then
    echo "there is no Slurm on $(hostname): no program sbatch, in a login shell neither" >&2
    exit 97
fi
eval "JOB_DIR=$JOB_DIR_WORD"
