#!/bin/sh
# Create or update a virtual environment for this checkout on a machine without a GPU:
#   cluster/setup_cpu.sh [VENV] [VLLM_VERSION]
# `mpa-ray setup-cpu` installs the packages. This script refuses an environment that it did not make for this checkout.
set -eu
venv=${1:-.venv}
vllm=${2:-}
python=$venv/bin/python
# Names the checkout that the environment was made for.
mark=$venv/.made-for

refuse() {
    printf 'setup: %s %s, so it is left alone. Remove it, or use another name: make setup VENV=%s-mpa\n' \
        "$venv" "$1" "$venv" >&2
    exit 2
}

[ -f pyproject.toml ] || { printf 'setup: run this script in the root of a checkout\n' >&2; exit 2; }
here=$(pwd -P)
if [ -L "$venv" ]; then
    refuse "is a symbolic link"
elif [ ! -e "$venv" ]; then
    mkdir -p "$venv"
    printf '%s\n' "$here" > "$mark"
elif [ -f "$mark" ]; then
    [ "$(cat "$mark")" = "$here" ] || refuse "was made for the checkout in $(cat "$mark")"
else
    # Earlier versions of this script left a log and no mark. Python notes in pyvenv.cfg where it made an environment.
    made=$(sed -n 's/^command = .* -m venv //p' "$venv/pyvenv.cfg" 2>/dev/null || true)
    if [ -f "$venv/setup.log" ] && [ -n "$made" ] && [ "$made" -ef "$venv" ]; then
        printf '%s\n' "$here" > "$mark"
    else
        refuse "was not made by make setup"
    fi
fi

# pip would compile the modules of all packages on one core, which takes a minute.
export PIP_COMPILE=0
"$python" -m pip --version >/dev/null 2>&1 || python3 -m venv "$venv"
printf 'setup: installing mpa_ray itself\n'
"$python" -m pip install --quiet --no-deps --editable .
"$python" -m mpa_ray.cli setup-cpu --extra dev ${vllm:+--vllm "$vllm"}
# Some packages have files for other versions of Python, which cannot be compiled.
"$python" -m compileall -q -j 0 "$venv"/lib/python3*/site-packages >/dev/null 2>&1 || true
