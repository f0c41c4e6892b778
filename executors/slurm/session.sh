# shellcheck shell=bash
# What scripts of an interactive session have in place of job.sh: the same variables, but no journal, for nobody
# starts it again. In: TASK, TOKEN, the current folder. Out: RUN, LOGS, NEMORUN_*, the secrets, `launch`.
RUN=$PWD/tasks/$TASK
LOGS=$RUN/logs/attempt-1
export NEMORUN_TASK=$TASK NEMORUN_EXPERIMENT=${TOKEN%%.*} NEMORUN_TOKEN=$TOKEN NEMORUN_ATTEMPT=1
export NEMORUN_RUN_DIR=$RUN NEMORUN_RESULTS_DIR=${NEMORUN_RESULTS_DIR:-$RUN/results} PYTHONUNBUFFERED=1
mkdir -p "$LOGS" "$NEMORUN_RESULTS_DIR"
if [ -e "$RUN/secrets" ]; then
    # shellcheck source=/dev/null
    source "$RUN/secrets"
fi
launch() { "$@"; }
