# Gives back the allocations that are kept under a name. POSIX sh, after prelude.sh.
# In: JOB_NAME. Out: their ids, on one line.
jobs=$(squeue --noheader --user="$(id -un)" --name="$JOB_NAME" --format=%A) || exit 1
# shellcheck disable=SC2086
[ -z "$jobs" ] || scancel $jobs || exit 1
# shellcheck disable=SC2086
echo $jobs
