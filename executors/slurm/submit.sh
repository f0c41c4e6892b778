# Submits an experiment's jobs, each exactly once however often this is run. POSIX sh, by plain.sh.
# In: ID (the experiment's), EXP (its folder under JOB_DIR), WANTED (what it needs of archives: paths under
# JOB_DIR). On stdin a tar.gz: `place` (what goes to EXP), `tasks`, `archives` (those that are not there yet) and
# `plan`, a line for each call of sbatch: UNIT OFFSET COUNT ARRAY AFTER CHAIN BESIDES, with `-` for nothing. UNIT is
# a task, or an array whose tasks are lines of UNIT.tasks, from OFFSET on. ARRAY is an option where the script's own
# will not do. AFTER are tasks, `+` before one means its whole array. CHAIN: only when the former call's job ended.
# BESIDES is the user's own dependency: it stands in the script, and an option on the command line hides that.
# Out: `ok` and lines TASK HANDLE; or `refused UNIT` or `unavailable`, and what Slurm said; or `missing`.
umask 077
base=$JOB_DIR/experiments
make_job_dir || exit 1
find "$base" -maxdepth 1 -name '.incoming.*' -mmin +1440 -exec rm -rf {} + # of who was killed
lock=
in=$(mktemp -d "$base/.incoming.XXXXXX") || exit 1
trap 'rm -rf "$in" ${lock:+"$lock"}' EXIT

# Half of it would be worse than nothing: what came in is used only if all of it came.
said=$(tar -xzf - -C "$in" 2>&1) && [ -s "$in/plan" ] || { # not to a file: the disk may be full
    why=$(echo "$said" | grep -i -m 1 -e space -e quota || echo "$said" | head -n 1)
    echo "the files did not arrive whole in $base: $why" >&2
    exit 95
}
for path in $WANTED; do
    [ -e "$JOB_DIR/$path" ] || [ -e "$in/archives/${path#*/}" ] || { echo missing; exit 0; }
done

# From here on it goes to its end, whether anybody is still connected or not.
trap '' HUP PIPE INT TERM
mkdir -p "$JOB_DIR/$EXP" && cd "$JOB_DIR/$EXP" || exit 1

# One at a time. A kernel's lock ends with its holder. Where the file system has none, a folder is the lock,
# which its holder touches; who died does not.
take_lock() {
    exec 9>submit.lock
    if flock -w 300 9 2>"$in/flock"; then return; fi
    [ -s "$in/flock" ] || { echo "another submission of this experiment holds $PWD/submit.lock" >&2; exit 94; }
    until mkdir submit.lock.d 2>/dev/null; do
        [ -z "$(find submit.lock.d -prune -mmin +2 2>/dev/null)" ] || rmdir submit.lock.d
        sleep 1
    done
    lock=$PWD/submit.lock.d
}
take_lock
if [ -s answer ]; then cat answer; exit 0; fi

# Put everything into its place; `tasks` last, and at once: it says that all of it is there.
put_in_place() {
    for path in $WANTED; do
        [ ! -e "$JOB_DIR/$path" ] || continue
        case $path in
        lib/*)
            mkdir "$in/lib" && tar -xzf "$in/archives/${path#*/}" -C "$in/lib" || return
            mv -T "$in/lib" "$JOB_DIR/$path" 2>/dev/null || [ -d "$JOB_DIR/$path" ] || return
            ;;
        *) mv -f "$in/archives/${path#*/}" "$JOB_DIR/$path" || return ;;
        esac
    done
    for path in $WANTED; do
        case $path in
        code/*)
            folder=$(basename "$path" .tar.gz | cut -c 1-12)
            [ -d "code/$folder" ] && continue
            mkdir -p code "$in/code" && tar -xzf "$JOB_DIR/$path" -C "$in/code" || return
            mv -T "$in/code" "code/$folder" || return
            ;;
        esac
    done
    mv -f "$in"/place/* . && mv -T "$in/tasks" tasks
}
repeated=yes
if [ ! -d tasks ]; then
    repeated=
    put_in_place || { echo "cannot write to $PWD" >&2; exit 1; }
fi

said=$in/said # what Slurm's commands complained of; each background process has its own
# Sets `id` to a job of this name and folder that no task has: one whose sbatch was never heard to answer.
look_up() { # NAME
    id=
    queue=$(squeue --noheader --states=all --user="$USER" --format='%i %j %Z' 2>"$said") || return
    past=$(timeout 20 sacct --noheader --allocations --parsable2 --starttime=now-14days --name="$1" \
        --format=JobID,JobName,WorkDir 2>/dev/null | tr '|' ' ')
    # elements of an array and components of a heterogeneous job are its parts: 12_3, 12+1
    for found in $(printf '%s\n%s\n' "$queue" "$past" | awk -v rest=" $1 $(pwd -P)" '
        substr($0, length($1) + 1) == rest { sub(/[_+].*/, "", $1); print $1 }' | sort -nu); do
        grep -qxE "$found(_[0-9]+)?" tasks/*/job 2>/dev/null || { id=$found; return 0; }
    done
}

# The same, tried for two minutes where Slurm does not answer. Nothing may be submitted without having looked.
pause=1
look_up_patiently() { # NAME
    until look_up "$1"; do
        [ "$pause" -le 32 ] || return
        [ -z "$lock" ] || touch "$lock"
        sleep "$pause"
        pause=$((pause * 2))
    done
}

transient() {
    grep -qiE 'socket timed out|unable to contact|temporarily|try again|timed? ?out|sleeping and retrying|connection (refused|reset)|communication|zero bytes|controller|server (too )?busy|rate limit' "$said"
}

# Nothing of this experiment shall run: job.sh ends what starts all the same. The answer is kept: a second call
# must not hear another one.
give_up() { # WHY
    for job in tasks/*; do
        : >"$job/cancelled"
        rm -f "$job/secrets"
    done
    cat tasks/*/job 2>/dev/null | sed 's/_.*//' | sort -u | xargs -r timeout 60 scancel 2>/dev/null
    { echo "$1"; cat "$said"; } >"$said.answer"
    mv "$said.answer" answer
    finish
    exit 0 # of a background process
}

# Sets `id`; fails where sbatch refuses. An sbatch that failed for another reason may have done it after all.
call_sbatch() { # NAME SBATCH-WORDS...
    job_name=$1
    shift
    pause=1
    while :; do
        id=$(sbatch --parsable "$@" 2>"$said" </dev/null 9>&-) && break
        transient || return
        [ "$pause" -le 32 ] || give_up unavailable
        : >"$in/doubtful"
        sleep "$pause"
        pause=$((pause * 2))
        look_up_patiently "$job_name" || give_up unavailable
        [ -z "$id" ] || break
    done
    id=${id%%;*}
}

submit() { # UNIT OFFSET COUNT ARRAY AFTER CHAIN BESIDES; in `awaited`, AFTER as words
    tasks=$1 id=
    [ "$3" = - ] || tasks=$(sed -n "$(($2 + 1)),$(($2 + $3))p" "$1.tasks")
    read -r first <<END
$tasks
END
    if [ -s "tasks/$first/job" ]; then
        read -r id <"tasks/$first/job"
        id=${id%_*}
    elif [ -n "$repeated" ]; then
        look_up_patiently "$1.$ID" || {
            cat "$said" >&2
            exit 92
        }
    fi
    if [ -z "$id" ]; then
        if [ "$3" = - ] && [ -e "tasks/$1/cancelled" ]; then return; fi
        depend=
        for task in $awaited; do
            job=
            [ ! -s "tasks/${task#+}/job" ] || read -r job <"tasks/${task#+}/job"
            if [ -z "$job" ]; then # what it waits for was cancelled before it was submitted
                for one in $tasks; do : >"tasks/$one/cancelled"; done
                return
            fi
            case $task in +*) job=${job%_*} ;; esac
            depend=$depend:$job
        done
        depend=${depend:+afterok$depend}
        [ "$6" = - ] || depend=${depend:+$depend,}afterany:$before
        [ "$7" = - ] || depend=${depend:+$depend,$7}
        script=$1.sbatch
        set -- "$1" "$2" "$3" "$4" ${depend:+"--dependency=$depend" --kill-on-invalid-dep=yes}
        unit=$1 offset=$2 count=$3 array=$4
        shift 4
        if [ "$array" = - ]; then
            call_sbatch "$unit.$ID" "$@" "$script" || give_up "refused $unit"
        else
            call_sbatch "$unit.$ID" "$@" "--array=$array" "$script" "$offset" || give_up "refused $unit"
        fi
        set -- "$unit" "$offset" "$count"
    fi
    before=$id
    index=0
    for task in $tasks; do
        handle=$id
        [ "$3" = - ] || handle=${id}_$index
        index=$((index + 1))
        [ -s "tasks/$task/job" ] || echo "$handle" >"tasks/$task/job"
        [ ! -e "tasks/$task/cancelled" ] || scancel "$handle" 2>/dev/null # it came while we submitted
    done
}

# Tasks that wait for nothing that is just being submitted go some at a time, for an sbatch mostly waits. Parts of
# an array do not: they share a name, by which a lost one is looked up. `running` are their processes, and `going`
# the tasks in the same order, each followed by a space.
at_once=4 running='' going='' unclear=''
wait_for_oldest() {
    wait "${running%% *}" || unclear=yes
    running=${running#* } going=${going#* }
}
# Wait for all; where one has given up, that is the answer.
finish() {
    [ -z "$in_background" ] || return 0
    while [ -n "$running" ]; do wait_for_oldest; done
    if [ -s answer ]; then cat answer && exit 0; fi
    [ -z "$unclear" ] || exit 92 # what was submitted before may run, and is left alone
}
in_background=''
while read -r unit offset count array after chain besides <&3; do
    [ -z "$lock" ] || touch "$lock"
    awaited=
    if [ "$after" != - ]; then
        IFS=,
        # shellcheck disable=SC2086
        set -- $after
        unset IFS
        awaited=$*
    fi
    for task in $awaited; do
        case " $going" in *" ${task#+} "*) finish ;; esac
    done
    if [ "$count" != - ]; then
        finish
        submit "$unit" "$offset" "$count" "$array" "$after" "$chain" "$besides"
        continue
    fi
    # shellcheck disable=SC2086
    set -- $running
    [ "$#" -lt "$at_once" ] || wait_for_oldest
    [ -z "$unclear" ] && [ ! -s answer ] || break
    {
        in_background=yes said=$in/said.$unit
        submit "$unit" "$offset" "$count" "$array" "$after" "$chain" "$besides"
    } 3<&- &
    running="$running$! " going="$going$unit "
done 3<"$in/plan"
finish

# An sbatch that was not heard of may have been carried out late: a job that no task has is one too many.
if [ -e "$in/doubtful" ] || [ -n "$repeated" ]; then
    while read -r unit _ <&3; do
        if look_up "$unit.$ID" && [ -n "$id" ]; then scancel "$id"; fi
    done 3<"$in/plan"
fi
{
    echo ok
    grep -H '' tasks/*/job | sed 's|^tasks/||; s|/job:| |'
} >"$in/answer"
mv "$in/answer" answer
cat answer
exit 0
