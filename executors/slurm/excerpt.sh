# Brings the last words of the first rank that failed, and of the batch script. POSIX sh, after prelude.sh.
# In: JOB_DIR, RUN (the job's folder under it), HANDLE (or "-").
# Out: lines of the rank; a line that is a form feed; lines of the batch script.
export LC_ALL=C
cd "$JOB_DIR/$RUN" 2>/dev/null || exit 0
[ "$HANDLE" != - ] || HANDLE=$(cat job 2>/dev/null)
case $HANDLE in
*_*) batch=../../logs/$HANDLE.log ;;
*) batch=logs/slurm-$HANDLE.log ;;
esac
attempt=$(find logs -maxdepth 1 -name 'attempt-*' 2>/dev/null | sort -t - -k 2 -n | tail -n 1)

# The earliest note of a failure tells the rank; else what srun said, of ranks that it did not end itself.
rank=$(find "$attempt" -name 'rank-*.failure' -exec grep -H '"time"' {} + 2>/dev/null |
    sed -n 's|.*/rank-\([0-9]*\)\.failure:.*"time": *\([0-9.]*\).*|\2 \1|p' | sort -n | head -n 1)
rank=${rank#* }
if [ -z "$rank" ]; then
    rank=$(grep -aE '^srun: error: [^ ]+ tasks? [0-9]' "$batch" 2>/dev/null | grep -avE ': (Terminated|Killed)' |
        tail -n 1 | sed 's/^srun: error: [^ ]* tasks\{0,1\} \([0-9]*\).*/\1/')
fi
tail -c 65536 "$attempt/rank-${rank:-0}.log" 2>/dev/null
printf '\n\f\n'
tail -c 65536 "$batch" 2>/dev/null
exit 0
