#!/bin/sh
# The steps of docker/Dockerfile, run from a folder that holds what is copied into the image.
#
#   install.sh dependencies VENV TOOLS       what the server needs, at the versions of constraints.txt; TOOLS gets what
#                                            installs it and is no part of the image
#   install.sh application FOLDER VENV TOOLS the server itself, without dependencies: FOLDER goes on PYTHONPATH
#   install.sh weights FOLDER [MODEL [REVISION]]   a model of the hub, or nothing where MODEL is empty
#
# VARIANT is cpu or cuda. EXTRAS are the optional dependencies of pyproject.toml that are wanted too. TORCH_INDEX_URL is where torch is taken from; without, the CPU variant asks uv for a CPU build,
# and takes torch from where pip takes the rest if uv gets none.
set -eu

PYTHON="${PYTHON:-python3}"
VARIANT="${VARIANT:-cpu}"
export EXTRAS="${EXTRAS:-postgresql otel}"

say() {
    echo "install.sh: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

# Each step is a subshell, so that its variables are its own.

# Of TOOLS, for the Python of VENV: install VENV TOOLS ARGUMENT...
install() (
    venv="$1" tools="$2"
    shift 2
    "$tools/bin/pip" --python "$venv/bin/python" install --quiet --no-cache-dir --disable-pip-version-check "$@"
)

torch() (
    venv="$1" tools="$2"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        install "$venv" "$tools" --constraint constraints.txt --index-url "$TORCH_INDEX_URL" torch
    elif [ "$VARIANT" = cpu ]; then
        # uv knows where CPU builds are. Only torch itself: the rest is pip's.
        {
            install "$tools" "$tools" --constraint constraints.txt uv &&
                "$tools/bin/uv" pip install --quiet --no-cache --python "$venv/bin/python" \
                    --constraint constraints.txt --no-deps --torch-backend cpu torch
        } || say "uv got no CPU build of torch: it is taken from where pip takes everything"
    fi
)

check_torch() (
    cuda="$("$1/bin/python" -c 'import torch; print(torch.version.cuda or "")')"
    case "$VARIANT:$cuda" in
        cpu: | cuda:?*) ;;
        cpu:*) say "this torch is built for CUDA $cuda, which makes the image gigabytes larger;" \
            "name an index of CPU builds in TORCH_INDEX_URL" ;;
        cuda:) fail "VARIANT is cuda, but this torch has no CUDA; name an index of CUDA builds in TORCH_INDEX_URL" ;;
    esac
)

# What serving never opens: headers and programs to build and test torch with, tests of the rest.
trim() (
    packages="$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
    rm -rf "$packages/torch/include" "$packages/torch/share" "$packages/torch/test"
    find "$packages" -type d -name tests -prune -exec rm -rf {} +
)

dependencies() (
    venv="$1" tools="$2"
    case "$VARIANT" in
        cpu | cuda) ;;
        *) fail "VARIANT must be cpu or cuda, not '$VARIANT'" ;;
    esac
    "$PYTHON" -m venv "$tools"
    "$PYTHON" -m venv --without-pip "$venv"
    "$PYTHON" - >"$tools/requirements.txt" <<'PYTHON'
import os, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
wanted = [package for name in os.environ["EXTRAS"].split() for package in extras[name]]
print("\n".join([*project["dependencies"], *wanted]))
PYTHON
    torch "$venv" "$tools"
    install "$venv" "$tools" --constraint constraints.txt --requirement "$tools/requirements.txt"
    check_torch "$venv"
    trim "$venv"
)

# For models/native: without one the server computes the same with torch's operators, slower on a CPU.
compiler() (
    command -v cc >/dev/null && return
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev; } >/dev/null 2>&1 ||
        say "no C compiler can be had: the kernels for CPUs are left out"
)

application() (
    compiler
    # For the environment's Python, which the command's first line names.
    install "$2" "$3" --no-deps --target "$1" .
)

weights() (
    folder="$1" model="${2:-}" revision="${3:-}"
    mkdir -p "$folder"
    if [ -n "$model" ]; then
        HF_HOME="$folder" "$PYTHON" -c '
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], revision=sys.argv[2] or None, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
' "$model" "$revision"
    fi
)

case "${1:-}:$#" in
    dependencies:3 | application:4 | weights:[234])
        step="$1"
        shift
        "$step" "$@"
        ;;
    *) fail "usage: dependencies VENV TOOLS, application FOLDER VENV TOOLS, or weights FOLDER [MODEL [REVISION]]; not '$*'" ;;
esac
