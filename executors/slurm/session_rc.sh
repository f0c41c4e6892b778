# shellcheck shell=bash
# How a bash on a node of an interactive session begins; the task's environment follows. What a step of its own has
# set of Slurm's variables would mislead every srun that is called here: they are put back to what a script has.
# In: NODES, RANKS (on each), GPUS (on each, or nothing); the current folder is the experiment's.

# As a login shell does, for `module`.
# shellcheck source=/dev/null
if [ -r /etc/profile ]; then source /etc/profile; fi
for nr_file in ~/.bash_profile ~/.bash_login ~/.profile ~/.bashrc; do
    # shellcheck source=/dev/null
    if [ -r "$nr_file" ]; then
        source "$nr_file"
        break
    fi
done
for nr_name in "${!SLURM_@}" "${!SRUN_@}"; do
    case $nr_name in
    SLURM_CONF | SLURM_CLUSTER_NAME | SLURM_JOB_ID | SLURM_JOB_PARTITION | SLURM_JOB_ACCOUNT) ;;
    *) unset "$nr_name" ;;
    esac
done
# shellcheck disable=SC2153
SLURM_JOB_NODELIST=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N)
export SLURM_JOB_NODELIST SLURM_JOBID=$SLURM_JOB_ID SLURM_NODELIST=$SLURM_JOB_NODELIST SLURM_SUBMIT_DIR=$PWD
export SLURM_NNODES=$NODES SLURM_JOB_NUM_NODES=$NODES SLURM_NTASKS_PER_NODE=$RANKS
export SLURM_NTASKS=$((NODES * RANKS)) SLURM_NPROCS=$((NODES * RANKS))
if [ -n "$GPUS" ]; then export SLURM_GPUS_PER_NODE=$GPUS; fi
unset nr_file nr_name
