"""install.sh and environment.yaml: one list of packages, one range of Python, and shell scripts that parse."""
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_install_asks_for_the_packages_and_the_python_of_environment_yaml():
    """install.sh reads its list from environment.yaml: the very command must give the parsed list."""
    text, parts = (ROOT / "install.sh").read_text(), yaml.safe_load((ROOT / "environment.yaml").read_text())
    (pip,) = [part["pip"] for part in parts["dependencies"] if isinstance(part, dict)]
    line = re.search(r"^packages=\$\((.*)\)$", text, re.M).group(1)
    listed = subprocess.run(["bash", "-c", line], cwd=str(ROOT), stdout=subprocess.PIPE, check=True).stdout.decode()
    assert listed.split() == pip
    assert {"torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image", "matplotlib"} <= {
        re.split("[<>=]", requirement)[0] for requirement in pip}
    (python,) = [part for part in parts["dependencies"] if str(part).startswith("python")]
    low, high = re.search(r"\((\d, \d+)\) <= sys.version_info < \((\d, \d+)\)", text).groups()
    assert python == "python>={},<{}".format(low.replace(", ", "."), high.replace(", ", "."))


def test_shell_scripts_parse_and_install_refuses_another_word():
    for script in ("install.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    done = subprocess.run(["bash", str(ROOT / "install.sh"), "nonsense"], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
