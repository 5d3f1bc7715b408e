#!/usr/bin/env bash
# Make a folder of the wheels that a machine without a network still lacks, by package name alone.
#
#   bash benchmarks/wheels.sh DIR [PACKAGE…]
#
# The machine is taken to have Python 3.12, torch, triton, timm, accelerate, transformers and what they need, and the
# packages named here or given as PACKAGE. Everything else that unicl and its benchmarks need goes into DIR, which must
# not exceed 60 MB. There, with a checkout of unicl in the current folder:
#
#   python3 -m pip install --no-index --no-deps DIR/*.whl
#   python3 benchmarks/gpu.py --out gpu-run
set -euo pipefail

DIR=${1:?usage: bash benchmarks/wheels.sh DIR [PACKAGE…]}
shift
MOST_MB=60
VERSION=3.12
TORCH=${TORCH:-2.11.0}
HAS=(torch=="$TORCH" torchvision triton timm accelerate transformers tokenizers safetensors numpy pillow pyyaml
  scikit-learn pandas pyarrow pytest hypothesis peft typer rich pydantic filelock psutil "$@")
WANTED=(datasets open_clip_torch simplejpeg memeff)
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}

platforms=(--implementation cp --python-version "$VERSION" --only-binary=:all:)
for glibc in $(seq 39 -1 5); do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

# pip says what a target would install, without downloading the large wheels
resolve() {
  "$PYTHON" -m pip install --quiet --dry-run --ignore-installed --target "$DIR/.none" --report "$1" "${platforms[@]}" \
    "${@:2}" 2> "$1.log" || { cat "$1.log" >&2; exit 1; }
}

rm -rf "$DIR"
mkdir -p "$DIR"
work=$(mktemp -d)
trap 'rm -rf "$work" "$DIR/.none"' EXIT
"$PYTHON" "$ROOT/benchmarks/wheel_lists.py" needs "$ROOT/pyproject.toml" > "$work/needs"
resolve "$work/has.json" "${HAS[@]}"
"$PYTHON" "$ROOT/benchmarks/wheel_lists.py" pins "$work/has.json" > "$work/pins"
mapfile -t needs < "$work/needs"
resolve "$work/all.json" --constraint "$work/pins" "${needs[@]}" "${WANTED[@]}"
"$PYTHON" "$ROOT/benchmarks/wheel_lists.py" missing "$work/all.json" "$work/has.json" > "$work/missing"
"$PYTHON" -m pip download --quiet --no-deps --dest "$DIR" "${platforms[@]}" --requirement "$work/missing" 2> "$work/log" \
  || { cat "$work/log" >&2; exit 1; }
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$DIR" "$ROOT" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
"$PYTHON" "$ROOT/benchmarks/wheel_lists.py" check "$DIR" "$work/has.json" "$VERSION" "$MOST_MB"
