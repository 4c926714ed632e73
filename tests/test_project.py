"""The ground around the scripts: set-up files, the committed model."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def test_install_asks_for_what_environment_yaml_asks_for():
    """install.sh reads its list from environment.yaml: the very command must give the parsed list."""
    (pip,) = [part["pip"] for part in yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
              if isinstance(part, dict)]
    line = re.search(r"^packages=\$\((.*)\)$", (ROOT / "install.sh").read_text(), re.M).group(1)
    listed = subprocess.run(["bash", "-c", line], cwd=str(ROOT), stdout=subprocess.PIPE, check=True).stdout.decode()
    assert listed.split() == pip
    assert {"torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image", "matplotlib"} <= {
        re.split("[<>=]", requirement)[0] for requirement in pip}


def test_install_and_environment_agree_on_python():
    (python,) = [part for part in yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
                 if str(part).startswith("python")]
    asked = re.search(r"\((\d, \d+)\) <= sys.version_info < \((\d, \d+)\)", (ROOT / "install.sh").read_text())
    low, high = asked.groups()
    assert python == "python>={},<{}".format(low.replace(", ", "."), high.replace(", ", "."))


def test_install_refuses_another_word():
    done = subprocess.run(["bash", str(ROOT / "install.sh"), "nonsense"], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1


def test_the_committed_model_loads_and_predicts(vae):
    path = ROOT / "models" / "vae.pth"
    model, (mixture, labels) = vae.load_model(str(path)), vae.load_mixture(str(ROOT / "models" / "gmm_params.pkl"))
    assert path.stat().st_size < 4_000_000 and labels.tolist() == [1, 4, 8]
    drawn = model.decode(vae.torch.tensor(mixture.means_, dtype=vae.torch.float32)).detach().numpy()
    assert drawn.shape == (3, 784) and drawn.max() > 0.5
    found = vae.classify(model, mixture, labels, vae.reconstruct(model, drawn, refined=False).reshape(-1, 784))
    assert found.shape == (3,) and set(found) <= {1, 4, 8}


def test_handin_without_a_command_says_what_there_is():
    done = subprocess.run([sys.executable, "-m", "handin"], cwd=str(ROOT), stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"demo" in done.stderr


def test_read_labels_refuses_another_header(tmp_path):
    from handin.scores import read_labels
    (tmp_path / "vae.csv").write_text("Predicted_label\n1\n")
    with pytest.raises(ValueError, match="Predicted_Label"):
        read_labels(tmp_path / "vae.csv")


def test_the_plain_vae_of_the_benchmark_trains():
    from benchmarks import plain_vae
    images = np.random.default_rng(0).random((64, 784)).astype(np.float32)
    model = plain_vae.train(images, epochs=1)
    assert model.decode(model.encode(plain_vae.torch.from_numpy(images))[0]).shape == (64, 784)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_shell_scripts_parse():
    for script in ("install.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
