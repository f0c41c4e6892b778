# shellcheck shell=bash
# Sourced by the other scripts: makes and fills the checkout's own environment, .venv, and only where something changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The version of a Python, such as 3.11.7; nothing where it does not start.
python_version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true; }

# Prints a Python 3.10 to 3.13 that can make environments: $PYTHON where it is set, else the first on PATH.
find_python() {
    local candidate candidates version without_venv=""
    candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ ! ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        version=$(python_version "$candidate")
        case $version in
            3.10.* | 3.11.* | 3.12.* | 3.13.*) ;;
            *) continue ;;
        esac
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        without_venv="$candidate ($version)"
    done
    if [[ $without_venv ]]; then
        fail "$without_venv has no venv module. Install it (on Debian and Ubuntu: apt-get install python3-venv)" \
            "or set PYTHON to another Python."
    elif [[ ${PYTHON:-} ]]; then
        version=$(python_version "$PYTHON")
        fail "PYTHON=$PYTHON ${version:+is Python $version, and }cannot be used: set it to a Python 3.10 to 3.13."
    fi
    fail "no Python 3.10 to 3.13 on PATH. Install one, or set PYTHON to its path."
}

# ensure_environment EXTRA…: .venv holds this checkout (editable) with these extras, at the versions of the lock file.
ensure_environment() {
    local python extra key missing=""
    python=.venv/bin/python
    if [[ ! $(python_version $python) ]] || [[ ${PYTHON:-} && $(python_version "$PYTHON") != $(python_version $python) ]]; then
        python=$(find_python)
        say "making .venv with $python ($(python_version "$python"))"
        "$python" -m venv --clear .venv || fail "could not make .venv with $python."
        python=.venv/bin/python
    fi

    key="$(python_version $python) $(cat pyproject.toml requirements.lock | cksum)"
    for extra in "$@"; do
        [[ $(cat ".venv/installed-$extra" 2>/dev/null) == "$key" ]] || missing+="${missing:+,}$extra"
    done
    if [[ ! $missing ]]; then
        say "environment is up to date (.venv, Python $(python_version $python))"
        return
    fi
    say "installing nemorun[$missing] into .venv (the first time takes a minute or two; pip's output: .venv/install.log)"
    if ! $python -m pip install --disable-pip-version-check --no-input \
        --constraint requirements.lock --editable ".[$missing]" > .venv/install.log 2>&1; then
        grep -v 'is ignored' .venv/install.log | tail -n 15 >&2
        fail "pip could not install the packages (all of its output: .venv/install.log). Without a network," \
            "point pip to a package index that can be reached (PIP_INDEX_URL) or to a folder of wheels (PIP_FIND_LINKS)."
    fi
    for extra in "$@"; do
        echo "$key" > ".venv/installed-$extra"
    done
}
