#!/usr/bin/env bash
# Check and measure the package on a GPU in at most six minutes, on a machine that has PyTorch and no network.
#
#   bash tests/gpu/run.sh --fetch-wheels [FOLDER]   on a machine with a network: download what PyTorch machines often lack
#   bash tests/gpu/run.sh [--output FOLDER] [...]   on the machine with the GPU; see measure.py for further options
#   bash tests/gpu/run.sh --reduced                 on any machine: every part in a small size, on the CPU
#
# The wheels are stored in tests/gpu/wheels (WHEELS names another folder), which git ignores; copy it with the checkout.
# Only wheels of packages that the machine lacks, or has in an older version, are installed, into a temporary folder.
# PyTorch, NumPy, SciPy, PyArrow and pandas must be installed already. The results are a table (table.md) and a JSON file
# (results.json) in the output folder. Both are written after each part, so an interrupted run keeps its results so far.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-python3}"
wheels="${WHEELS:-$here/wheels}"

if [ "${1:-}" = "--fetch-wheels" ]; then
  wheels="${2:-$wheels}"
  # The Python of the machine with the GPU, such as 3.12; by default the Python of this machine.
  version="${GPU_PYTHON:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}"
  platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
  mkdir -p "$wheels"
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --dest "$wheels" \
    "transformers>=5.18,<6" "huggingface-hub>=1.3,<2" "datasets>=4.4,<6" "accelerate>=1.12,<2" "safetensors>=0.5" \
    "tokenizers>=0.23.1,<0.24" soundfile cffi pycparser "dill<0.4.2" "multiprocess<0.70.20" xxhash
  du -sh "$wheels"
  exit
fi

site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
if compgen -G "$wheels/*.whl" > /dev/null; then
  mapfile -t needed < <("$python" "$here/wheels_needed.py" "$wheels")
  if [ "${#needed[@]}" -gt 0 ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
      --target "$site" "${needed[@]}"
  fi
fi
export PYTHONPATH="$site:$root:$root/tests:$root/tests/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
case " $* " in
  *" --reduced "*) "$python" "$here/measure.py" "$@" ;;
  *) timeout 345 "$python" "$here/measure.py" "$@" ;;
esac
