"""The commands on a pretended GPU (see pretend_gpu.py): devices of tensors, resuming, the limits of MPS."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PRETEND = ROOT / "tests" / "pretend_gpu.py"
DEVICES = ("cuda:7.5", "mps")  # 7.5 has no bfloat16
there_is_one = torch.cuda.is_available() or torch.backends.mps.is_available()
pytestmark = pytest.mark.skipif(there_is_one, reason="for machines without a GPU")
TINY = ("--epochs", "3", "--image-size", "32", "--threads", "1")


def on(device, *words, cwd, env):
    """The finished process of scripts, or of -m modules, on a pretended device."""
    words = [sys.executable, str(PRETEND), device, *map(str, words)]
    done = subprocess.run(words, cwd=str(cwd), env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("device", DEVICES)
def test_birds(device, bird_script, bird_call, bird_data, environment, tmp_path):
    flags = ("--epochs", "8", "--image-size", "32", "--threads", "1")
    made = on(device, bird_script, bird_data.train, "train", "bird.pth", *flags, "+",
              bird_script, bird_data.test, "test", "bird.pth", cwd=tmp_path, env=environment)
    assert f"on {device.split(':')[0]}:0 in float32" in made.stdout  # --device auto has found it
    elsewhere = bird_call(bird_data.test, "test", "bird.pth")  # trained on a GPU, used without one
    scores = [float(out.split("average F1 ")[1].split()[0]) for out in (made.stdout, elsewhere.out)]
    assert min(scores) > 0.6, scores


def test_a_killed_training_resumes_on_gpu_and_cpu(bird_script, bird_call, bird_few, environment, tmp_path):
    words = (bird_script, bird_few, "train", "bird.pth", *TINY)
    command = [sys.executable, "-u", str(PRETEND), "cuda:8.0", *map(str, words)]
    with subprocess.Popen(command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith("epoch   2/3"))  # its checkpoint is written
        process.kill()
    shutil.copy(str(tmp_path / "bird_checkpoint.pth"), str(tmp_path / "cpu_checkpoint.pth"))
    resumed = on("cuda:8.0", *words, "--resume", "+", bird_script, bird_few, "train", "whole.pth", *TINY, cwd=tmp_path,
                 env=environment)
    elsewhere = bird_call(bird_few, "train", "cpu.pth", *TINY, "--resume")
    for out in (resumed.stdout, elsewhere.out):
        assert "resumed after epoch" in out and "epoch   3/3" in out
    assert (tmp_path / "whole.pth").read_bytes() == (tmp_path / "bird.pth").read_bytes()


def test_a_training_stopped_on_the_cpu_resumes_on_a_gpu(bird, bird_call, bird_script, bird_few, environment,
                                                        monkeypatch, tmp_path):
    monkeypatch.setattr(bird, "print_line",
                        lambda line, *_: "epoch   2/3" in line and os.kill(os.getpid(), signal.SIGTERM))
    assert bird_call(bird_few, "train", "bird.pth", *TINY).code == 143
    resumed = on("cuda:7.5", bird_script, bird_few, "train", "bird.pth", *TINY, "--resume", cwd=tmp_path,
                 env=environment)
    assert "resumed after epoch" in resumed.stdout and "epoch   3/3" in resumed.stdout


NORM = "torch.nn.BatchNorm2d(2).to(d)(torch.rand(4, 2, 3, 3, device=d).contiguous(memory_format=torch.channels_last))"
REFUSED = {  # code: error message
    "cuda": {"torch.ones(3) + torch.ones(3, device=d)": "expected all tensors on cuda:0",
             "torch.ones(3)[torch.arange(2, device=d)]": "expected all tensors on cuda:0",
             "torch.ones(3, device=d).numpy()": "expected a tensor on the CPU for NumPy",
             "torch.randn(3, device=d, generator=torch.Generator())": "expected a generator on cuda:0"},
    "mps": {"torch.ones(3, device=d).double()": "expected another dtype on MPS",
            NORM: "expected contiguous tensors on MPS"}}
TAKEN = {  # code: its value
    "cuda": {"(torch.ones(3, device=d) + torch.arange(3).to(d)).sum().item()": 6.0, f"{NORM}.device.type": "cuda",
             "torch.arange(3, device=d)[torch.tensor([2])].tolist()": [2]},
    "mps": {"(torch.ones(3, device=d) * torch.tensor(2.0)).cpu().tolist()": [2.0, 2.0, 2.0]}}


@pytest.mark.parametrize("device", DEVICES)
def test_digits(device, script_path, data, environment, tmp_path):
    """The three commands; pseudo-labels of images that are not part of the graph; what a pretended GPU refuses."""
    kind = device.split(":")[0]
    (tmp_path / "code.py").write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch, vae
d = torch.device({kind!r}, 0)
vae.pseudo_labels(vae.load_digits({str(data.train)!r}), 3, torch.Generator(), d, graph_size=60)
for code, value in {TAKEN[kind]!r}.items():
    assert eval(code) == value, code
for code, said in {REFUSED[kind]!r}.items():
    try:
        eval(code)
    except (RuntimeError, TypeError) as error:
        assert said in str(error), (code, error)
    else:
        raise AssertionError(code)
""")
    made = on(device, script_path, data.train, data.val, "train", "v.pth", "g.pkl", "--epochs", "2", "--threads", "1",
              "+", script_path, data.test, "test_reconstruction", "v.pth", "+",
              script_path, data.test, "test_classifier", "v.pth", "g.pkl", "--device", kind, "+", "code.py",
              cwd=tmp_path, env=environment)
    assert f"on {kind}:0" in made.stdout
    assert np.load(str(tmp_path / "vae_reconstructed.npz"))["data"].shape == (50, 28, 28)
    labels = np.loadtxt(str(tmp_path / "vae.csv"), skiprows=1, dtype=int)
    assert (labels == data.test_labels).mean() > 0.6


STUDY = """
import sys
from studies import __main__ as command, fashion
fashion.QUICK = {"feature_steps": 8, "betas": (0.5,)}
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("device", DEVICES)
def test_study(device, draw, environment, tmp_path):
    """The study whose network is least like those of the scripts: transposed convolutions, in channels_last on CUDA."""
    kinds = np.arange(300) % 3
    np.savez(str(tmp_path / "shapes.npz"), data=draw(kinds), labels=kinds)
    (tmp_path / "study.py").write_text(STUDY)
    on(device, "study.py", "fashion", "shapes.npz", "--out", "out", "--quick", "--epochs", "1", "--device",
       device.split(":")[0], cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["device"].startswith(("pretended", "mps"))


def test_a_gpu_that_does_not_work(bird, vae, monkeypatch):
    """Such as one that this torch has no kernels for: a warning for `auto`, an error for its own name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for script in (bird, vae):
        with pytest.warns(RuntimeWarning, match="cuda is available but failed: ."):
            assert script.pick_device("auto") == torch.device("cpu")
        with pytest.raises(script.InputError, match="expected .*--device.*, found 'cuda'"):
            script.pick_device("cuda")


@pytest.mark.parametrize("way_in", [
    "sys.argv = ['bird.py']; runpy.run_path('bird.py', run_name='__main__')",
    "sys.argv = ['vae.py']; runpy.run_path('vae.py', run_name='__main__')",
    "import studies.__main__, studies.training", "import handin.__main__, handin.report.figures_birds"])
def test_mps_falls_back_to_the_cpu(way_in, environment):
    """torch reads the variable when it is first imported, so that each entry point has to set it before."""
    code = f"""
import os, runpy, sys
class Spy:
    def find_spec(self, name, *_):
        if name == 'torch':
            os._exit(7 if os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK') == '1' else 1)
sys.meta_path.insert(0, Spy())
{way_in}
"""
    plain = {name: value for name, value in environment.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), env=plain, check=False, timeout=600)
    assert done.returncode == 7
