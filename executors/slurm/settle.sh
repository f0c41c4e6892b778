# Puts what an interactive session needs into its folder. POSIX sh, after prelude.sh.
# In: EXP (the folder, under JOB_DIR), WANTED (archives: paths under JOB_DIR), JOB_NAME, MARK (the comment that a
# living allocation must have; if it has another one, nothing is done). On stdin a tar.gz: `place` and `tasks` (what
# goes to EXP), `archives` (those that are not there yet). SECRETS (a file in EXP, or nothing): it gets CLAIM behind
# its name, by which enter.sh takes it. If that has not come within GRACE seconds, the connection is broken, and the
# file is deleted.
# Out: a line `JOBID COMMENT` for each living allocation of that name.
living=$(squeue --noheader --user="$(id -un)" --name="$JOB_NAME" --format='%A %k') || exit 1
case "$MARK:$living" in
:* | *: | *" $MARK") ;;
*) echo "$living" && exit ;;
esac
umask 077
base=$JOB_DIR/experiments
make_job_dir && mkdir -p "$JOB_DIR/$EXP/code" || exit 1
in=$(mktemp -d "$base/.incoming.XXXXXX") || exit 1
trap 'rm -rf "$in"' EXIT
tar -xzf - -C "$in" && [ -s "$in/plan" ] || { echo "the files did not arrive whole in $base" >&2; exit 95; }

# Another session may do the same at this moment: whoever comes second finds it done.
unpack() { # ARCHIVE FOLDER
    [ ! -d "$2" ] || return 0
    part=$(mktemp -d "$in/XXXXXX") && tar -xzf "$1" -C "$part" || return
    mv -T "$part" "$2" 2>/dev/null || [ -d "$2" ]
}
for path in $WANTED; do
    name=${path#*/}
    case $path in
    lib/*) unpack "$in/archives/$name" "$JOB_DIR/$path" || exit 1 ;;
    *)
        [ -e "$JOB_DIR/$path" ] || mv -f "$in/archives/$name" "$JOB_DIR/$path" || exit 1
        unpack "$JOB_DIR/$path" "$JOB_DIR/$EXP/code/$(echo "$name" | cut -c 1-12)" || exit 1
        ;;
    esac
done
rm -f "$JOB_DIR/$EXP/nemorun"
if [ -n "$SECRETS" ]; then
    mv "$in/$SECRETS" "$in/$SECRETS.$CLAIM" || exit 1
    # in a session of its own, so that it outlives this connection
    $(command -v setsid) sh -c 'trap "" HUP; sleep "$1"; rm -f "$2"' expire \
        "$GRACE" "$JOB_DIR/$EXP/$SECRETS.$CLAIM" </dev/null >/dev/null 2>&1 &
fi
cp -RPf "$in/place/." "$in/tasks" "$JOB_DIR/$EXP/" || exit 1
[ -z "$living" ] || echo "$living"
