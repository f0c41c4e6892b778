# Opens a terminal in an allocation, which it takes where there is none. POSIX sh, after prelude.sh, on a terminal.
# In: EXP (the session's folder, under JOB_DIR), RC (what the shell reads, in there), JOB (an allocation, or nothing),
# OPTIONS (of salloc, quoted for a shell), JOB_NAME, KEEP (yes: the allocation stays), NODE (which of its
# nodes; the first one without), AGAIN (the command that comes back), SECRETS and CLAIM (a file that settle.sh has left;
# it goes when the session does).
cd "$JOB_DIR/$EXP" || exit 1
if [ -n "$SECRETS" ]; then
    trap 'rm -f "$SECRETS"' EXIT
    trap 'exit 129' HUP
    mv "$SECRETS.$CLAIM" "$SECRETS" || { echo "nemorun: the secrets are gone: start the session again" >&2; exit 1; }
fi
export RC NODE
# shellcheck disable=SC2016
enter='
job=$SLURM_JOB_ID
for name in $(env | sed -n "s/^\(SLURM_[A-Za-z0-9_]*\)=.*/\1/p"); do [ "$name" = SLURM_CONF ] || unset "$name"; done
exec srun --jobid="$job" --overlap --nodes=1 --ntasks=1 --cpu-bind=none ${NODE:+"--nodelist=$NODE"} --pty \
    bash --rcfile "$RC" -i
'
if [ -z "$JOB" ] && [ "$KEEP" = no ]; then
    eval "salloc $OPTIONS sh -c \"\$enter\""
    exit
fi
if [ -z "$JOB" ]; then
    eval "salloc --no-shell $OPTIONS" || exit
    JOB=$(squeue --noheader --user="$(id -un)" --name="$JOB_NAME" --format=%A | tail -n 1)
    [ -n "$JOB" ] || { echo "nemorun: the allocation is gone already" >&2; exit 1; }
fi
SLURM_JOB_ID=$JOB sh -c "$enter"
code=$?
[ "$KEEP" = yes ] || exit "$code"
until=$(squeue --noheader --jobs="$JOB" --states=RUNNING --format=%e 2>/dev/null)
if [ -n "$until" ]; then
    echo "nemorun: job $JOB is kept until $until; \`$AGAIN\` comes back to it, \`$AGAIN --release\` gives it back" >&2
else
    echo "nemorun: job $JOB has ended" >&2
fi
exit "$code"
