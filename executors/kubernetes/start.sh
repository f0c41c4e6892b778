#!/bin/sh
# The start of a pod: unpacks nemorun and the frozen code, puts the task's files into its run folder, and
# hands over to the pod's supervisor, which waits for the other pods and starts the ranks.
#
#   NEMORUN_FILES     prefix of this task's files in /nemorun/files
#   NEMORUN_ARCHIVE   the frozen code's archive, if there is one
#   NEMORUN_CODE      the folder it is unpacked to; without an archive, where the image has its code
#   NEMORUN_PATH      folders of modules
#   NEMORUN_WORKDIR   the folder to start in, where it is not the image's own
set -eu
umask 077
# Told to stop already: nothing is lost. (The first process of a pod ignores what it has no trap for.)
trap 'exit "${NEMORUN_EXIT_RESUME:-75}"' TERM

# The number of this pod: as a Job, PyTorchJob's operator and a TrainJob's runtime tell it.
NEMORUN_NODE=${JOB_COMPLETION_INDEX:-${PET_NODE_RANK:-${RANK:-0}}}
export NEMORUN_NODE
# First what was submitted, then nemorun itself, then what the image has.
PYTHONPATH=${NEMORUN_PATH:+$NEMORUN_PATH:}/nemorun/lib${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
# A user that the image does not know has no home and no name, which torch and others ask for.
[ -w "${HOME:-/nowhere}" ] || HOME=/nemorun
export HOME USER="${USER:-nemorun}"

mkdir -p /nemorun/lib "$NEMORUN_RUN_DIR/logs" "$NEMORUN_RESULTS_DIR"
tar -xzof /nemorun/files/nemorun.tar.gz -C /nemorun/lib
if ! python3 -c "import yaml" 2>/dev/null; then # ours is slower than the one that an image has
    PYTHONPATH=$PYTHONPATH:/nemorun/lib/fallback
fi
for file in /nemorun/files/"$NEMORUN_FILES".*; do
    if [ -e "$file" ]; then
        # Pods that share the folder write the same; a name of its own, then a move, lets each see it whole.
        copy="$NEMORUN_RUN_DIR/${file#/nemorun/files/"$NEMORUN_FILES".}"
        cp "$file" "$copy.$NEMORUN_NODE.new"
        mv "$copy.$NEMORUN_NODE.new" "$copy"
    fi
done

if [ -n "${NEMORUN_ARCHIVE:-}" ]; then
    waited=0
    until [ -e "$NEMORUN_ARCHIVE" ]; do
        if [ "$waited" -ge "${NEMORUN_START_TIMEOUT:-1800}" ]; then
            echo "nemorun: the code $NEMORUN_ARCHIVE is not there after $waited s" >&2
            exit 1
        fi
        waited=$((waited + 1))
        sleep 1
    done
    mkdir -p "$NEMORUN_CODE"
    tar -xzof "$NEMORUN_ARCHIVE" -C "$NEMORUN_CODE"
fi
if [ -n "${NEMORUN_WORKDIR:-}" ]; then
    cd "$NEMORUN_WORKDIR"
fi
export NEMORUN_CODE="${NEMORUN_CODE:-$PWD}"

# -I: no folder that happens to be there is searched for modules; the ranks' environment stays as it is.
exec python3 -I -c 'import sys
sys.path.insert(0, "/nemorun/lib")
from nemorun.executors.kubernetes.pod import main
sys.exit(main())' "$@"
