#!/bin/sh
# torch 2.13.0 (CPU build) with accelerate 1.15.0.
#
# Two processes started by torchrun on a machine without a GPU: torch's environment says WORLD_SIZE=2, `Accelerator()` says one
# process, and each of the two is its main process. With `cpu=True` (or ACCELERATE_USE_CPU=1) it says two.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0
"$dir/venv/bin/pip" install -q accelerate==1.15.0
cd "$dir"
cat > count.py <<'PY'
import os, sys
from accelerate import Accelerator
a = Accelerator(cpu=True) if sys.argv[1] == "cpu" else Accelerator()
# One write a process: their lines must not run into each other.
line = f"{sys.argv[1]}: WORLD_SIZE {os.environ['WORLD_SIZE']} counted {a.num_processes} main {a.is_main_process}\n"
os.write(1, line.encode())
PY
export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
for how in default cpu; do
    "$dir/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 --master-port 29611 count.py $how 2>/dev/null | tee "$how.txt"
done
test "$(grep -c 'counted 1 main True' default.txt)" = 2
test "$(grep -c 'counted 2 main' cpu.txt)" = 2
test "$(grep -c 'counted 2 main True' cpu.txt)" = 1
