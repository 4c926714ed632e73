#!/usr/bin/env bash
# bash install.sh         sets everything up in .venv
# bash install.sh demo    sets up and runs the main job on data that needs no download
# bash install.sh test    sets up and passes the tests
# PYTHON names another interpreter, VENV another place for the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

goal=${1:-setup}
case $goal in
    setup | demo | test) ;;
    *) echo "install.sh: expected nothing, 'demo' or 'test', found '$goal'" >&2; exit 2 ;;
esac
python=${PYTHON:-$(command -v python3 || command -v python || echo python3)}
if ! "$python" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 15))' 2>/dev/null; then
    echo "install.sh: expected Python 3.8 to 3.14 as python3 (or name one in PYTHON), found '$python'" >&2
    exit 2
fi

venv=${VENV:-.venv}
packages=$(sed -n 's/^      - //p' environment.yaml)
wanted="$("$python" -VV) $packages"
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
    echo "install.sh: setting up $venv (minutes the first time: torch is large)"
    # A torch that the machine already has (Kaggle, Colab, a cluster's own build) is kept, not replaced.
    have=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null || true)
    if ! "$python" -m venv ${have:+--system-site-packages} "$venv"; then
        echo "install.sh: expected the venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 2
    fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    quiet=(--quiet --no-input)
    # shellcheck disable=SC2086  # the list is meant to be split
    if [ -z "$have" ] || ! "$venv/bin/python" -m pip install "${quiet[@]}" $packages "torch==$have"; then
        [ -z "$have" ] || echo "install.sh: no torchvision fits the torch $have found here; installing another in $venv"
        "$venv/bin/python" -m pip install "${quiet[@]}" $packages
    fi
    "$venv/bin/python" -c 'import torch, torchvision, sklearn, skimage, matplotlib, scipy'
    printf '%s' "$wanted" >"$venv/.installed"
fi

case $goal in
    setup) echo "ready: $venv/bin/python vae.py --help" ;;
    demo) "$venv/bin/python" -m handin demo ;;
    test) "$venv/bin/python" -m pytest -q -n auto --dist loadfile ;;
esac
