#!/bin/sh
# environment.sh FOLDER: an environment with vLLM for CPUs, this project and its test tools.
set -e
folder=$1
python=$folder/bin/python
${PYTHON:-python3} -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check -e '.[vllm]' \
    'hypothesis>=6.120' 'pytest>=8.3' 'pytest-asyncio>=1.0' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6'
sh docker/install.sh vllm "$folder" "$folder"
