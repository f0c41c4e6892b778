# Tells all that is known of some jobs: their journals, and what Slurm says. POSIX sh, after prelude.sh.
# In: JOB_DIR; ASK (1: ask Slurm, too); QUERY (text or json); QUEUE_FORMAT; FIELDS (of sacct); SINCE (a date).
#     stdin: a line for each job: number, folder under JOB_DIR, handle or "-", id of the experiment.
# Out: lines "kind FS ...", FS being ASCII's unit separator; `polling.py` says what each kind is.

# shellcheck disable=SC2016  # what stands in single quotes is for awk

fs=$(printf '\037')
export LC_ALL=C SLURM_TIME_FORMAT=%s SLURM_BITSTR_LEN=0
note() { printf '%s\n' "$2" | sed "s/^/$1$fs/"; }

note T "$(date +%s)"
if ! cd "$JOB_DIR" 2>/dev/null; then
    # It was never made; or, where its parent is missing, too, the file system is not there today.
    [ -d "$(dirname "$JOB_DIR")" ] || note N "$JOB_DIR"
    cd / || exit 1
fi

# J: number, handle, job name, array index or -, was a cancel ordered, folder.  L: number, line of the journal.
jobs=$(awk -v fs="$fs" '
    function first(file,   line) { if ((getline line < file) < 0) line = ""; close(file); return line }
    function there(file,   line, found) { found = (getline line < file) >= 0; close(file); return found }
    {
        handle = $3 == "-" ? first($2 "/job") : $3
        split("", unit); split(first($2 "/unit"), unit, " ")
        name = unit[1] == "" ? "" : unit[1] "." $4
        print "J" fs $1 fs handle fs name fs unit[2] fs there($2 "/cancelled") fs $2
        journal = $2 "/journal"
        while ((getline line < journal) > 0) print "L" fs $1 fs line
        close(journal)
    }')
printf '%s\n' "$jobs"

# K: number of a job whose secrets are still there.
printf '%s\n' "$jobs" | awk -F "$fs" '$1 == "J" { print $2, $7 }' | while read -r number folder; do
    [ ! -e "$folder/secrets" ] || printf 'K%s%s\n' "$fs" "$number"
done

# B: folder of an experiment that is just being submitted; asked only for jobs that have no id yet.
printf '%s\n' "$jobs" | awk -F "$fs" '$1 == "J" && $3 == "" { sub("/tasks/[^/]*$", "", $7); print $7 }' | sort -u |
    while read -r experiment; do
        [ -e "$experiment/submit.lock" ] || continue
        said=$(flock -n "$experiment/submit.lock" true 2>&1) && continue
        # a file system without such locks says so: then a folder is the lock
        if [ -z "$said" ] || [ -d "$experiment/submit.lock.d" ]; then note B "$experiment"; fi
    done

# Rows of others stay here: the first field is the job, or one of the next two its name.
ours='
    $1 == "J" { split($3, part, /[_+]/); if ($3) known[part[1]]; else if ($4) known[$4]; next }
    $1 == "L" { next }
    { split($1, part, /[_+.]/) }
    part[1] in known || $3 in known'

queue=
if [ "$ASK" = 1 ]; then
    if [ "$QUERY" = json ]; then
        queue=$(timeout 30 squeue --json 2>&1)
    else
        queue=$(timeout 30 squeue --me --noheader --array --states=all --format="$QUEUE_FORMAT" 2>&1)
    fi
    code=$?
    if [ "$code" -ne 0 ]; then
        note QE "${queue:-squeue ended with $code} "
        ASK=0 queue=
    elif [ "$QUERY" = json ]; then
        note QJ "$queue"
        queue=
    else
        queue=$(printf '%s\n' "$jobs" "$queue" | awk -F "$fs" "$ours")
        [ -z "$queue" ] || note Q "$queue"
    fi
fi

# Who is to be looked up: those that have not ended, by their journals, and do not wait or run, by squeue
# ("gone"); and those that someone else than us has cancelled ("cancelled").
gone=$(printf '%s\n' "$queue" "$jobs" | awk -F "$fs" -v ask="$ASK" '
    NF == 12 && $4 ~ /^(PENDING|RUNNING|COMPLETING|CONFIGURING|RE.*|S.*)$/ {
        sub(/\+0$/, "", $1); live[$1]; live[$3]
    }
    $1 == "J" { number[++count] = $2; handle[$2] = $3; name[$2] = $4; ordered[$2] = $6; folder[$2] = $7 }
    $1 == "L" { split($3, word, " "); if (word[2] == "ended") ended[$2] = word[4] }
    END {
        for (i = 1; i <= count; i++) {
            n = number[i]
            split(handle[n], part, "_")
            known = handle[n] ? handle[n] in live : name[n] in live
            if (ended[n] == "succeeded") kind = "succeeded"
            else if (ended[n] == "cancelled") kind = ordered[n] ? "" : "cancelled"
            else if (ended[n]) kind = "failed"
            else kind = ask == 1 && !known ? "gone" : ""
            if (kind) print kind, n, folder[n], handle[n] ? part[1] : "-", name[n] ? name[n] : "-", handle[n]
        }
    }')

words() { printf '%s\n' "$gone" | awk -v field="$1" "$2"' { print $field }' | sort -u | paste -s -d , -; }
numbers=$(words 4 '($1 == "gone" || $1 == "cancelled") && $4 != "-"')
names=$(words 5 '$1 == "gone" && $4 == "-" && $5 != "-"')

account() {
    if [ "$QUERY" = json ]; then
        timeout 30 sacct --duplicates --json "$@" 2>&1
    else
        timeout 30 sacct --duplicates --noheader --parsable2 --delimiter="$fs" --format="$FIELDS" "$@" 2>&1
    fi
}
tell() {
    rows=$(account "$@")
    code=$?
    case "$code $rows" in
        *"accounting storage is disabled"*)
            rows=$(timeout 30 scontrol --oneliner --all show job 2>&1) || rows=
            # "JobId=1 ArrayJobId=1 ...": the number is what stands behind the first, or the second
            rows=$(printf '%s\n' "$jobs" "$rows" | awk -F "$fs" -v fs="$fs" '
                $1 == "J" { split($3, part, /[_+]/); if ($3) known[part[1]]; else if ($4) known[$4]; next }
                split($0, word, /[= ]/) && (word[2] in known || (word[3] == "ArrayJobId" && word[4] in known) ||
                    (match($0, / JobName=[^ ]*/) && substr($0, RSTART + 9, RLENGTH - 9) in known))')
            note C "$rows" ;;
        "0 "*)
            if [ "$QUERY" = json ]; then note AJ "$rows"; else note A "$rows"; fi ;;
        *) note AE "${rows:-sacct ended with $code}" ;;
    esac
}
case "$FIELDS" in # FailedNode is not known to all versions
    *FailedNode) case "$(sacct --helpformat 2>/dev/null)" in *FailedNode*) ;; *) FIELDS=${FIELDS%,*} ;; esac ;;
esac
if [ -n "$numbers" ]; then tell --jobs="$numbers"; fi
if [ -n "$names" ]; then tell --name="$names" --starttime="$SINCE"; fi

[ -n "$gone" ] || exit 0

# U: number and name of a user who may have cancelled something.
printf '%s\n' "$rows" | sed -n "s/.*${fs}CANCELLED by \([0-9]*\)${fs}.*/\1/p" | sort -u | while read -r uid; do
    note U "$uid$fs$(id -un "$uid" 2>/dev/null || echo "$uid")"
done

# F: number, attempt, rank, note of the first rank that failed.  S: number, words of srun and slurmstepd.
{
    printf '%s\n' "$gone"
    echo
    printf '%s\n' "$gone" | awk '
        $1 != "succeeded" {
            print $3 "/logs"
            if ($6 ~ /_/) { sub("/tasks/[^/]*$", "", $3); print $3 "/logs/" $6 ".log" }
        }' | xargs -r grep -rasHE --include='rank-*.failure' --include='slurm-*.log' --include='*_*.log' \
        '^\{|^(srun|slurmstepd[^:]*): |^nemorun: attempt [0-9]+ of ' --
} | awk -v fs="$fs" '
    $0 == "" && !listed { listed = 1; next }
    !listed {
        number[$3] = $2
        experiment = $3; sub("/tasks/[^/]*$", "", experiment)
        number[experiment "/logs/" $6 ".log"] = $2
        next
    }
    {
        at = index($0, ":"); path = substr($0, 1, at - 1); text = substr($0, at + 1)
        folder = path; sub("/logs/.*", "", folder)
        n = path in number ? number[path] : number[folder]
        if (n == "") next
        if (path ~ /\.failure$/) {
            split(substr(path, length(folder) + 1), part, /[-\/.]/) # "", logs, attempt, N, rank, R, failure
            when = match(text, /"time": *[0-9.]+/) ? substr(text, RSTART + 7, RLENGTH - 7) + 0 : 0
            if (!(n in attempt) || part[4] + 0 > attempt[n] || (part[4] + 0 == attempt[n] && when < first[n])) {
                attempt[n] = part[4] + 0; first[n] = when; failure[n] = part[6] " " text
            }
        } else if (text ~ /^nemorun: attempt/) {
            words[n] = 0 # what was said before is of the one before
        } else {
            said[n, ++words[n]] = text
            delete said[n, words[n] - 30]
        }
    }
    END {
        for (n in failure) print "F" fs n fs attempt[n] fs failure[n]
        for (n in words) for (i = words[n] - 29; i <= words[n]; i++) if (i > 0) print "S" fs n fs said[n, i]
    }'

# R: number, line of result.json.  X: number of a job whose result is too large to be brought along.
printf '%s\n' "$gone" | awk -v fs="$fs" '
    $1 == "succeeded" {
        file = $3 "/result.json"; text = ""; size = 0
        while (size <= 1048576 && (getline line < file) > 0) {
            size += length(line) + 1
            text = text "R" fs $2 fs line "\n"
        }
        close(file)
        if (size > 1048576) print "X" fs $2
        else if (size) print substr(text, 1, length(text) - 1)
    }'
