"""install.sh and environment.yaml: one list of packages, one range of Python, and shell scripts that parse."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_shell_scripts_parse():
    for script in ("install.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
