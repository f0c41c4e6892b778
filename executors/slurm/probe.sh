# Prints what a submission must know of this cluster, in sections; changes nothing. POSIX sh, after prelude.sh.
# In: WANTED (paths under JOB_DIR that would be sent), PYTHON (the interpreter, or nothing), MORE (yes: all that
# `executors check` shows).
section() { printf '=== %s\n' "$1"; }
user=$(id -un)

section job_dir
there=$JOB_DIR
while [ ! -e "$there" ] && [ "$there" != "$(dirname -- "$there")" ]; do there=$(dirname -- "$there"); done
echo "$JOB_DIR"
if [ -d "$there" ] && [ -w "$there" ] && [ -x "$there" ]; then echo writable; else echo "$there"; fi
df -Pk -- "$there" 2>/dev/null | awk 'NR == 2 { print $4 }'

section have
for path in $WANTED; do
    [ ! -e "$JOB_DIR/$path" ] || echo "$path"
done

section config
config=$(scontrol show config) || exit 98
echo "$config" | grep -E '^(SLURM_VERSION|ClusterName|MaxArraySize|AccountingStorage(Type|Enforce)|SchedulerParameters) '

section partitions
scontrol show partition -o || exit 98

section nodes
sinfo --noheader --exact --format='%R|%D|%c|%m|%G' || exit 98

# slurmdbd may be out of reach, or not there at all: then sbatch itself must judge
case $config in
*accounting_storage/slurmdbd*)
    section accounts
    timeout 10 sacctmgr -nP show user "$user" withassoc format=defaultaccount,cluster,account,partition,qos,maxwall 2>/dev/null
    section qos
    timeout 10 sacctmgr -nP show qos format=name,maxwall,flags 2>/dev/null
    ;;
esac

if [ -n "$PYTHON" ]; then
    section python
    case $PYTHON in
    */*) eval "PYTHON=$PYTHON" ;;
    esac
    command -v "$PYTHON" >/dev/null 2>&1 && "$PYTHON" --version 2>&1
fi

if [ "$MORE" = yes ]; then
    section host
    hostname
    section time
    date +%s.%N
    section torch
    if [ -n "$PYTHON" ]; then
        "$PYTHON" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null
    fi
    section containers
    srun --help 2>&1 | grep -q -e --container-image && echo pyxis
    for program in enroot apptainer singularity; do
        command -v "$program"
    done
fi
exit 0
