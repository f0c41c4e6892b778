# shellcheck shell=bash
# What every batch script sources once it has set TASK. It keeps the task's journal, and when an attempt ends it
# decides whether there is another: the last word on that is here, where the ranks, Slurm and the files are at hand.
# Works with bash 4.2 and Slurm 20.11. What is nemorun's own begins with nr_; the script goes on to set the rest.
#
# In:   TASK; RETRIES: how many failures and time limits are forgiven; RESUMABLE=1: the task saves its state on a
#       signal and ends with 75; WARNING: seconds before the time limit at which Slurm sends that signal.
# Out:  RUN, the task's folder; LOGS, this attempt's; NEMORUN_*; the secrets; `launch`, which does not return.

nr_task=$TASK nr_retries=${RETRIES:-0} nr_resumable=${RESUMABLE:-} nr_warning=${WARNING:-90}
nr_most_interruptions=20
nr_ended='' nr_launched='' nr_signalled='' nr_terminated=''
# The id of an array's last element, as Slurm counts, stands for the whole array.
nr_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
nr_job=${nr_job:-$SLURM_JOB_ID}
nr_log=$(readlink "/proc/$$/fd/2")
RUN=$PWD/tasks/$nr_task
nr_journal=$RUN/journal

nr_say() { echo "nemorun: $*" >&2; }

nr_note() {
    printf '%(%s)T %s\n' -1 "$*" >>"$nr_journal" && return
    nr_say "'$*' could not be written to $nr_journal: is the disk full?"
    return 1
}

nr_interruptions() { nr_count '(lost|requeued [0-9]+ (preempted|requeued))'; }

nr_count() { grep -cE "^[0-9]+ $1 " "$nr_journal"; }

nr_scontrol() { SLURM_TIME_FORMAT=standard scontrol -o "$@" 2>/dev/null; }

# The slurm log, from the start of attempt $1.
nr_slurm_log() { sed -n "/^nemorun: attempt $1 of /,\$p" "$nr_log" 2>/dev/null; }

# What slurmd said in the slurm log when it ended an attempt: "CANCELLED AT … DUE TO PREEMPTION ***". It is all
# there is: while a job is COMPLETING, scontrol does not tell what of.
nr_verdict() { nr_slurm_log "$1" | grep -o '\*\*\* JOB .* CANCELLED AT .*' | tail -n 1; }

# srun ends with 0 when it gave up, as it does after a node's failure: what it said counts.
nr_gave_up() {
    nr_slurm_log "$nr_attempt" |
        grep -qE '^srun: (error: Node failure|Job step aborted|Force Terminated|error: Timed out waiting for job step)'
}

# srun ends with the highest code of all ranks, which is that of those it killed because the first had failed.
nr_first_code() {
    nr_slurm_log "$nr_attempt" |
        sed -n 's/^srun: error: .*: tasks\{0,1\} .*: Exited with exit code \([0-9]*\)$/\1/p' | head -n 1
}

# The nodes of attempt $1 that failed in it, with commas: srun missed them, or they are down, or were started since.
nr_failed_nodes() {
    local began line node=''
    local down=' State=(DOWN|ERROR|UNKNOWN|[^ ]*(NOT_RESPONDING|FAIL|[*]))' started=' SlurmdStartTime=([0-9T:-]+)'
    began=$(grep -E "^[0-9]+ began $1 " "$nr_journal")
    {
        nr_slurm_log "$1" | sed -n 's/^srun: error: Node failure on \([^ ]*\).*/\1/p' |
            xargs -r -n 1 scontrol show hostnames
        nr_scontrol show node "${began##* }" | while read -r line; do
            [[ $line =~ NodeName=([^ ]+) ]] && node=${BASH_REMATCH[1]}
            if [[ $line =~ $down ]]; then
                echo "$node"
            elif [[ $line =~ $started ]]; then
                [ "$(date -d "${BASH_REMATCH[1]}" +%s)" -le "${began%% *}" ] || echo "$node"
            fi
        done
    } | sort -u | paste -sd, -
}

# Ask Slurm for another attempt, for the reason $1 after the exit code $2, not on the nodes $3. Fails if it refuses.
nr_requeue() {
    local answer facts try
    trap '' TERM USR2                          # Slurm ends us as soon as it agrees, so
    nr_note requeued "$nr_attempt" "$1" "$2"   # this comes first
    for ((try = 0; ; try++)); do
        answer=$(LC_ALL=C scontrol requeue "$nr_job" 2>&1) && break
        case $answer in *"is pending"*) break ;; esac # it was faster
        case $try$answer in
            24* | *disabled* | *denied* | *nvalid\ job*)
                nr_say "Slurm refuses to start job $nr_job again: $answer"
                return 1
                ;;
        esac
        sleep 5 # the controller is being restarted, say
    done
    if [ -n "${3-}" ]; then
        # Slurm changes this for pending jobs only, which we are from now on.
        facts=$(nr_scontrol show job "$nr_job")
        if [[ $facts =~ \ ReqNodeList=\(null\)\ ExcNodeList=([^ ]+) ]]; then
            answer=${BASH_REMATCH[1]/(null)/}
            scontrol update "JobId=$nr_job" "ExcNodeList=${answer:+$answer,}$3" && return
        fi
        nr_say "$3 could not be excluded"
    fi
    return 0
}

nr_end() {
    rm -f "$RUN/secrets" # before anybody reads that it has ended
    nr_note ended "$nr_attempt" "$1" "$2"
    nr_say "attempt $nr_attempt ended: $1, exit code $2"
}

# Why the ranks have ended with the code $1.
nr_reason() {
    local asked='' facts='' verdict='' end now
    if [ -e "$LOGS/resume" ] || [ "$1" -eq 75 ]; then
        asked=1
    elif [ -n "$nr_resumable" ] && [ "$1" -eq 140 ]; then
        asked=1 # USR2 came before Python could listen
    fi
    if [ -e "$RUN/cancelled" ]; then
        echo cancelled
        return
    elif [ "$1" -eq 0 ] && [ -z "$asked$nr_terminated" ]; then
        echo succeeded
        return
    fi
    facts=$(nr_scontrol show job "$nr_job")
    if [[ ${facts:-${nr_terminated:+ JobState=}} =~ \ JobState= && ! $facts =~ \ JobState=RUNNING ]]; then
        # Slurm ends the job, and says in our log why. The ranks may have heard of it before we do.
        for ((nr_look = 0; nr_look < 60; nr_look++)); do
            verdict=$(nr_verdict "$nr_attempt")
            [ -z "$verdict" ] || break
            sleep 0.2
        done
        case $verdict in
            *"TIME LIMIT"*) echo time-limit ;;
            *PREEMPTION*) echo preempted ;;
            *"JOB REQUEUE"*) echo requeued ;; # by somebody
            *FAILURE*) echo node-failure ;;
            *) echo cancelled ;; # no more said: never bring back what someone may have cancelled
        esac
        return
    fi
    if [[ $facts =~ \ PreemptTime=[0-9] ]]; then
        echo preempted # and this is the time of grace
        return
    elif [ -n "$asked" ]; then
        if [[ $facts =~ \ EndTime=([0-9T:-]+) ]]; then
            end=$(date -d "${BASH_REMATCH[1]}" +%s)
            printf -v now '%(%s)T' -1
            # Slurm may send the warning up to a minute early.
            if [ $((end - now)) -le $((nr_warning + 60)) ]; then
                echo time-limit
                return
            fi
        fi
        echo requeued # it was told to stop, and nobody says why
    elif nr_slurm_log "$nr_attempt" | grep -qiE 'oom.kill|tasks? [0-9, -]+: out of memory' ||
        grep -qsE '"type": "(MemoryError|OutOfMemoryError)"' "$LOGS"/*.failure; then
        echo out-of-memory
    elif [ -n "$(nr_failed_nodes "$nr_attempt")" ]; then
        echo node-failure # the ranks noticed it before Slurm did
    else
        echo failed
    fi
}

# The script's end, however it comes.
nr_finish() {
    local code=$1 first reason nodes='' allowed=''
    [ -z "$nr_ended" ] || return
    nr_ended=1
    set +eu
    if [ -z "$nr_launched" ]; then
        nr_say "the batch script ended before it had launched the task, with exit code $code"
        [ "$code" -ne 0 ] || code=1
    elif [ "$code" -eq 0 ] && nr_gave_up; then
        code=143
    elif [ "$code" -eq 143 ] || [ "$code" -eq 137 ]; then
        first=$(nr_first_code)
        code=${first:-$code}
    fi
    reason=$(nr_reason "$code")
    case $reason in
        succeeded | cancelled) ;;
        preempted | requeued | node-failure)
            if [ "$reason" = node-failure ]; then
                nodes=$(nr_failed_nodes "$nr_attempt")
                nr_note lost "$nr_attempt" "$reason" "${nodes:--}"
            fi
            [ "$(nr_interruptions)" -ge "$nr_most_interruptions" ] || allowed=1
            ;;
        *) [ "$(nr_count 'requeued [0-9]+ (failed|time-limit|out-of-memory)')" -ge "$nr_retries" ] || allowed=1 ;;
    esac
    if [ -n "$allowed" ] && nr_requeue "$reason" "$code" "$nodes"; then
        nr_say "attempt $nr_attempt: $reason${nodes:+ ($nodes)}, exit code $code; it is started again"
    else
        nr_end "$reason" "$code"
    fi
    [ -z "$nr_launched" ] || wait "$nr_step" # ranks that ignore SIGTERM, until Slurm kills us all
    exit "$code"
}

# Run the words, which start the ranks, and end as they end.
launch() {
    set +e
    nr_launched=1
    "$@" &
    nr_step=$!
    # A signal that was asked for with B: comes to us alone; srun hands it on.
    trap 'nr_signalled=1; kill -USR2 "$nr_step"' USR2
    # Slurm's last word before SIGKILL (KillWait, 30 s or less): the ranks have it too.
    trap 'nr_signalled=1; nr_terminated=1' TERM
    local code=0
    while [ -z "$nr_terminated" ]; do
        nr_signalled=''
        wait "$nr_step"
        code=$?
        [ -n "$nr_signalled" ] || nr_finish "$code"
    done
    # Decide while there is time, even if the ranks go on.
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        kill -0 "$nr_step" 2>/dev/null || break
        sleep 0.2
    done
    if kill -0 "$nr_step" 2>/dev/null; then
        nr_finish 143
    fi
    wait "$nr_step"
    nr_finish "$?"
}

# A submission that Slurm took late may have been repeated by then; the task has the job that this file names.
if [ -s "$RUN/job" ] && [ "$(<"$RUN/job")" != "$nr_job" ]; then
    nr_say "this task has job $(<"$RUN/job"), and job $nr_job is one too many: there is nothing to start"
    exit 1
fi
if ! { mkdir -p "$RUN/logs" "$RUN/results" && : >>"$nr_journal"; }; then
    nr_say "$RUN cannot be written on $(hostname): is the disk full, or the folder not there?"
    exit 73
fi
nr_attempt=$(nr_count began) # the last one
nr_nodes=''
nr_past=$(grep -E "^[0-9]+ (began|lost|requeued|ended) $nr_attempt " "$nr_journal" | tail -n 1)
case $nr_past in
    *" ended "*)
        nr_say "this task has ended for good (${nr_past#* }): there is nothing to start"
        exit "${nr_past##* }"
        ;;
    *" began "*)
        # Nobody wrote down how that attempt ended: Slurm killed it, or its first node died.
        nr_why=unknown
        case $(nr_verdict "$nr_attempt") in
            *PREEMPTION*) nr_why=preempted ;;
            *"JOB REQUEUE"*) nr_why=requeued ;;
            *) nr_nodes=$(nr_failed_nodes "$nr_attempt") ;;
        esac
        [ -z "$nr_nodes" ] || nr_why='node-failure'
        nr_note lost "$nr_attempt" "$nr_why" "${nr_nodes:--}"
        if [ "$(nr_interruptions)" -gt "$nr_most_interruptions" ]; then
            nr_end "$nr_why" 1
            exit 1
        fi
        ;;
    *" requeued $nr_attempt node-failure "*)
        # We may have been killed before the node was excluded. Where it cannot be, it is taken in the end.
        if [ "$(nr_count "requeued $nr_attempt node-failure")" -lt 3 ]; then
            nr_nodes=$(sed -nE "s/^[0-9]+ lost $nr_attempt node-failure //p" "$nr_journal" | tail -n 1)
        fi
        ;;
esac
if [ -e "$RUN/cancelled" ]; then
    nr_end cancelled 143
    exit 143
fi
nr_here=$(for nr_list in SLURM_JOB_NODELIST "${!SLURM_JOB_NODELIST_HET_GROUP_@}"; do
    scontrol show hostnames "${!nr_list}"
done | awk '!seen[$0]++' | paste -sd, -)
if [ -n "$nr_nodes" ] && grep -qxFf <(tr , '\n' <<<"$nr_nodes") <(tr , '\n' <<<"$nr_here"); then
    nr_say "attempt $nr_attempt lost $nr_nodes, and here is a node of it again: asking for others"
    if nr_requeue node-failure 0 "$nr_nodes"; then
        exit 0
    fi
    trap - TERM USR2
fi

nr_attempt=$((nr_attempt + 1))
LOGS=$RUN/logs/attempt-$nr_attempt
nr_say "attempt $nr_attempt of $nr_task: job $nr_job on ${nr_here:-$(hostname)}"
{ mkdir -p "$LOGS" && nr_note began "$nr_attempt" "$nr_job" "${nr_here:-$(hostname)}"; } || exit 73
trap 'nr_finish "$?"' EXIT
trap 'nr_terminated=1; exit 143' TERM

export NEMORUN_TASK=$nr_task NEMORUN_EXPERIMENT=${SLURM_JOB_NAME##*.} NEMORUN_TOKEN=${SLURM_JOB_NAME##*.}.$nr_task
export NEMORUN_RUN_DIR=$RUN NEMORUN_RESULTS_DIR=$RUN/results NEMORUN_ATTEMPT=$nr_attempt PYTHONUNBUFFERED=1
[ -z "$nr_resumable" ] || export NEMORUN_RESUMABLE=1
if [ -e "$RUN/secrets" ]; then
    # shellcheck source=/dev/null
    source "$RUN/secrets"
fi
