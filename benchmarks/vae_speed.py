"""Training and prediction time and memory of vae.py, side by side in one run.

    python -m benchmarks.vae_speed TRAIN.npz VAL.npz [FOLDER]

FOLDER, if given, keeps the trained files.

1. `train` by the real command beside the usual solution (benchmarks/plain_vae.py, 83 epochs).
2. `test_classifier` on 10,000 images beside `python -c "import torch"`: seconds and peak memory, medians of 5.
"""
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def run(command, folder):
    """Seconds and peak MB of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main():
    train, val, *kept = (str(Path(path).resolve()) for path in sys.argv[1:4])
    script = str(ROOT / "vae.py")
    with tempfile.TemporaryDirectory() as folder:
        ours, _ = run([sys.executable, script, train, val, "train", "vae.pth", "gmm.pkl", "--quiet"], folder)
        usual, _ = run([sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import vae; "
                        "from benchmarks import plain_vae; plain_vae.train(vae.load_images(sys.argv[2]))",
                        str(ROOT), train], folder)
        for name in ("vae.pth", "gmm.pkl") if kept else ():
            shutil.copy(os.path.join(folder, name), kept[0])
        print(f"train: vae.py {ours:.0f} s, the usual solution {usual:.0f} s, ratio {ours / usual:.2f}", flush=True)
        with np.load(train) as content:
            images = content["data"]
        np.save(os.path.join(folder, "test.npy"), images[np.arange(10_000) % len(images)])
        predict, bare = [], []
        for _ in range(5):
            predict.append(run([sys.executable, script, "test.npy", "test_classifier", "vae.pth", "gmm.pkl", "--quiet"],
                               folder))
            bare.append(run([sys.executable, "-c", "import torch"], folder))
        for name, column, unit in (("seconds", 0, "s"), ("peak memory", 1, "MB")):
            a, b = (statistics.median(row[column] for row in rows) for rows in (predict, bare))
            print(f"test_classifier on 10,000 images, {name}: {a:.2f} {unit}, import torch alone {b:.2f} {unit}, "
                  f"difference {a - b:.2f} {unit}")


if __name__ == "__main__":
    main()
