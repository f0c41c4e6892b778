# Cancels tasks for good: what runs is ended, what waits never starts, nothing is started again. POSIX sh, after
# prelude.sh. On stdin, a line for each task: its folder under JOB_DIR, its handle or `-`, its experiment's id.
umask 077
said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT
tasks=$(cat)
cd "$JOB_DIR" 2>/dev/null || exit 0 # nothing was ever submitted here

# A submission that is under way, of which nobody has heard, puts the folders there at its end only.
missing_folders() {
    echo "$tasks" | while read -r run _ _; do
        [ -d "$run" ] || [ ! -e "${run%/tasks/*}/submit.lock" ] || echo "${run%/tasks/*}"
    done | sort -u
}
for folder in $(missing_folders); do
    flock -w 10 "$folder/submit.lock" true 2>/dev/null || sleep 2
done

# First the mark, then the jobs: a submission that goes on meanwhile looks for the mark after each job.
handles=$(echo "$tasks" | while read -r run handle id; do
    [ -d "$run" ] || continue
    : >"$run/cancelled"
    [ ! -e "$run/secrets" ] || rm -f "$run/secrets"
    if [ -s "$run/job" ]; then
        read -r handle <"$run/job"
        echo "$handle $id"
    elif [ "$handle" != - ]; then
        echo "$handle $id"
    elif [ -s "$run/unit" ]; then
        read -r unit index <"$run/unit"
        echo "? $index $unit.$id $(cd "${run%/tasks/*}" && pwd -P)"
    fi
done)
[ -n "$handles" ] || exit 0

pause=1
while :; do
    : >"$said"
    queue=$(squeue --noheader --user="$(id -un)" --states=all --format='%i %j %Z' 2>>"$said")
    # A controller that lost what it had not yet saved gives the same numbers out again: the name must be ours.
    ids=$(printf '%s\n' "$queue" '' "$handles" | awk '
        NF == 0 { ours = 1; next }
        !ours { sub(/[_+].*/, "", $1); name[$1] = $2; next }
        $1 == "?" { next }
        { split($1, part, /[_+]/); end = "." $2 }
        !(part[1] in name) || substr(name[part[1]], length(name[part[1]]) - length(end) + 1) == end { print $1 }')
    if names=$(echo "$handles" | grep '^?'); then
        # sbatch was never heard to answer: its job is found by its name and folder, and is no other task's
        ids="$ids $(echo "$names" | while read -r _ index name; do
            echo "$queue" | awk -v rest=" $name" -v element="${index#-}" '
                substr($0, length($1) + 1) == rest {
                    sub(/[_+].*/, "", $1); print (element == "" ? $1 : $1 "_" element) }' | sort -u |
                while read -r found; do
                    grep -qxE "${found%_*}(_[0-9]+)?" "${name#* }"/tasks/*/job 2>/dev/null || echo "$found"
                done
        done)"
    fi
    # Each word is a question to the controller: elements of an array go in one, as far as a word may be long.
    # shellcheck disable=SC2086 # words
    [ -z "$ids" ] || printf '%s\n' $ids | awk -F _ '
        function give(job) { print job "_[" substr(list[job], 2) "]"; delete list[job]; delete count[job] }
        NF == 1 { print; next }
        { list[$1] = list[$1] "," $2; if (++count[$1] == 1000) give($1) }
        END { for (job in list) give(job) }' | xargs -r -n 500 scancel --quiet 2>>"$said"
    # what has ended is no error
    bad=$(grep -viE 'invalid job id|already (completed|completing|finished)|^$' "$said") || exit 0
    [ "$pause" -le 16 ] || { echo "$bad" >&2; exit 93; }
    sleep "$pause"
    pause=$((pause * 2))
done
