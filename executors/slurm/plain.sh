# Goes on with THEN in a new shell, in whose environment, and so in that of the jobs that it submits, stands only
# this. Once for all: an env(1) for each sbatch was a hundred programs more. POSIX sh, after prelude.sh.
# In: THEN (a script, which finds JOB_DIR as its $1).
user=$(id -un)
exec env -i HOME="$HOME" USER="$user" LOGNAME="$user" SHELL="${SHELL:-/bin/bash}" PATH="$PATH" \
    ${LANG:+"LANG=$LANG"} ${LC_ALL:+"LC_ALL=$LC_ALL"} ${SLURM_CONF:+"SLURM_CONF=$SLURM_CONF"} \
    sh -c "$THEN" submit "$JOB_DIR"
