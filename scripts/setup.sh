#!/usr/bin/env bash
# Make .venv from the hash-pinned locks. Safe to run again; does nothing when the locks have not changed.
# Needs python3.11 or newer; installs Debian's python3-venv when it is missing and this is root.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
STAMP=.venv/.locks
WANT=$(cat requirements.lock requirements-build.lock pyproject.toml | sha256sum)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANT" ]; then exit 0; fi
"$PYTHON" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then scripts/debian.sh python3-venv; fi
echo "set-up: making .venv with the packages of requirements.lock (hashes required)" >&2
"$PYTHON" -m venv --clear .venv
PIP=".venv/bin/python -m pip --disable-pip-version-check --quiet --quiet"
$PIP install --require-hashes -r requirements-build.lock
$PIP install --require-hashes -r requirements.lock
$PIP install --no-deps --no-build-isolation --editable .
echo "$WANT" > "$STAMP"
echo "set-up: done, $(.venv/bin/python -m pip list --format=freeze 2>/dev/null | wc -l) packages in .venv" >&2
