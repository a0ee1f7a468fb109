#!/bin/sh
# Makes a virtual environment with what building llm_boost needs: tools/make_venv.sh DIRECTORY
set -eu
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "llm_boost needs Python 3.10 or newer; set PYTHON to one" >&2
  exit 2
}

missing() {
  "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || echo python3-dev
  command -v g++ >/dev/null || echo g++
}

packages=$(missing)
if [ -n "$packages" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages
  else
    echo "missing:" $packages "- install with: sudo apt-get install" $packages >&2
    exit 2
  fi
fi

"$python" -m venv "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet --group build
