#!/usr/bin/env bash
# Gradescope runs this once, while it builds the image (Ubuntu 22.04).
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y python3-venv bubblewrap
id student >/dev/null 2>&1 || adduser --quiet --no-create-home --disabled-password --gecos "" student
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install --quiet --no-cache-dir --upgrade pip
/autograder/venv/bin/pip install --quiet --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
/autograder/venv/bin/pip install --quiet --no-cache-dir -r /autograder/source/requirements.txt
