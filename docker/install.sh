#!/bin/sh
# The steps of docker/Dockerfile, run from a folder that holds what is copied into the image.
#
#   install.sh dependencies VENV             what the server needs, at the versions of constraints.txt
#   install.sh application FOLDER VENV       the server itself, without dependencies: FOLDER goes on PYTHONPATH
#   install.sh weights FOLDER [MODEL [REVISION]]   a model of the hub, or nothing where MODEL is empty
#
# VARIANT is cpu or cuda. TORCH_INDEX_URL is where torch is taken from, if not from where pip takes the rest.
set -eu

PYTHON="${PYTHON:-python3}"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

dependencies() {
    venv="$1"
    "$PYTHON" -m venv "$venv"
    requirements="$venv/requirements.txt"
    "$PYTHON" - >"$requirements" <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print("\n".join([*project["dependencies"], *extras["postgresql"], *extras["otel"]]))
PYTHON
    set -- --quiet --no-cache-dir --disable-pip-version-check --constraint constraints.txt
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        "$venv/bin/pip" install "$@" --index-url "$TORCH_INDEX_URL" torch
    fi
    "$venv/bin/pip" install "$@" --requirement "$requirements"
    cuda="$("$venv/bin/python" -c 'import torch; print(torch.version.cuda or "")')"
    case "${VARIANT:-cpu}:$cuda" in
        cpu:) ;;
        cpu:*) echo "install.sh: this torch is built for CUDA $cuda, which makes the image gigabytes larger;" \
            "name an index of CPU builds in TORCH_INDEX_URL" >&2 ;;
        cuda:) fail "VARIANT is cuda, but this torch has no CUDA; name an index of CUDA builds in TORCH_INDEX_URL" ;;
        cuda:*) ;;
        *) fail "VARIANT must be cpu or cuda, not '${VARIANT:-}'" ;;
    esac
    # What only builds and installs is no part of the image.
    "$venv/bin/pip" uninstall --quiet --yes setuptools pip
}

application() {
    # With the environment's Python, which the command's first line names.
    "$PYTHON" -m pip --python "$2/bin/python" install --quiet --no-cache-dir --disable-pip-version-check \
        --no-deps --target "$1" .
}

weights() {
    folder="$1" model="${2:-}" revision="${3:-}"
    mkdir -p "$folder"
    if [ -n "$model" ]; then
        HF_HOME="$folder" "$PYTHON" -c '
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], revision=sys.argv[2] or None, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
' "$model" "$revision"
    fi
}

case "${1:-}" in
    dependencies | application | weights)
        step="$1"
        shift
        [ $# -ge 1 ] || fail "$step needs a folder"
        "$step" "$@"
        ;;
    *) fail "the first argument must be dependencies, application or weights, not '${1:-}'" ;;
esac
