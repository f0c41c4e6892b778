# Stands before every script that writes to job_dir. POSIX sh. In: JOB_DIR.

# What others could have put there would be run: where job_dir lies in a folder of all, they may have come first.
# shellcheck disable=SC2329 # by scripts that write there
make_job_dir() {
    mkdir -p "$JOB_DIR/experiments" "$JOB_DIR/code" "$JOB_DIR/lib" || return
    foreign=$(find "$JOB_DIR/experiments" "$JOB_DIR/code" "$JOB_DIR/lib" -prune ! -user "$(id -u)" | head -n 1)
    [ -z "$foreign" ] || { echo "job_dir: $foreign is another user's; set it to a folder of yours" >&2; return 1; }
}
