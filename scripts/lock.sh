#!/usr/bin/env bash
# Write requirements.lock: every dependency with its hashes, without download addresses.
# Run it after a change of dependencies in pyproject.toml; needs `uv` (in the dev group).
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
    --no-annotate --no-header --quiet --all-extras --group dev pyproject.toml -o requirements.lock
uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
    --no-annotate --no-header --quiet pyproject.toml -o requirements-device.lock
printf "hatchling\neditables\n" | uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-annotate --no-header --quiet - -o requirements-build.lock
