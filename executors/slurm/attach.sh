# Looks up where a running task is, and leaves there what a shell beside it reads. POSIX sh, after prelude.sh.
# In: RUN (the task's folder, under JOB_DIR); on stdin the shell's beginning.
# Out: a line `JOBID STATE ATTEMPT NODE[,NODE...]`, or nothing where the job is not in the queue.
umask 077
cat >"$JOB_DIR/$RUN/attach.rc" || exit 1
read -r job <"$JOB_DIR/$RUN/job" || exit 0 # not submitted, as far as is known
found=$(squeue --noheader --jobs="$job" --states=all --format='%A %T' 2>/dev/null | head -n 1)
[ -z "$found" ] || echo "$found $(awk '$2 == "began" { last = $3 " " $5 } END { print last }' "$JOB_DIR/$RUN/journal")"
