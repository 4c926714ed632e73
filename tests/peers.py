"""Scripts such as peers hand in, tiny and quick: a right one for each part, and that one with a single mistake; and
their data.

Photos here are files that hold the name of their class. At test no peer needs torch, which takes seconds to import."""
import types

import numpy as np


def write_birds(folder):
    """Two folders of classes whose order as strings, as numbers and as listed differ."""
    for part, number in (("train", 4), ("test", 9)):
        for name in ("2", "10", "9", "1"):  # listed forwards, backwards or by hash
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                (folder / part / name / f"{index}{name}.jpg").write_text(name)
    return types.SimpleNamespace(train=folder / "train", test=folder / "test")


def write_digits(folder):
    """Three files of stripes whose first pixel is the label, 1, 4 or 8, with an array of objects that nobody reads. The
    last test image is bright all over."""
    rng, found = np.random.default_rng(0), types.SimpleNamespace()
    for name, number in (("train", 60), ("val", 15), ("test", 40)):
        labels = np.array([1, 8, 4])[np.arange(number) % 3] if name != "test" else np.array([1, 8])[np.arange(40) % 2]
        clean = np.indices((28, 28)).sum(0) * labels[:, None, None] * 9 % 256
        images = np.clip(clean + rng.normal(0, 5, clean.shape), 0, 255).astype(np.uint8)
        images[:, 0, 0], images[-1, 1:] = labels, 255
        np.savez(str(folder / f"{name}.npz"), data=images, labels=labels.astype(np.int64), notes=np.array([{}]))
        setattr(found, name, folder / f"{name}.npz")
    return found


BIRD = '''"""A comment is not code: torchvision.models, pretrained=True, plt.show()"""
import os, sys

SEED = 0

def photos(folder):
    for label, name in enumerate(sorted(os.listdir(folder))):
        for file in sorted(os.listdir(os.path.join(folder, name))):
            yield os.path.join(folder, name, file), label

def classify(paths):
    names = sorted({open(path).read() for path in paths})
    return [names.index(open(path).read()) for path in paths]

if sys.argv[2:3] != ["test"]:
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

def train(path):
    torch.manual_seed(SEED)
    torch.save(Net().state_dict(), path)

def test(folder):
    labels = classify([path for path, _ in photos(folder)])
    with open("bird.csv", "w") as file:
        file.write("Predicted_Label\\n" + "".join(f"{label}\\n" for label in labels))

if __name__ == "__main__":
    dataset, mode, model = sys.argv[1:4]
    train(model) if mode == "train" else test(dataset)
'''

VAE = '''import pickle, sys
import numpy as np

SEED = 0

def write_labels(labels):
    with open("vae.csv", "w") as file:
        file.write("Predicted_Label\\n" + "".join(f"{label}\\n" for label in labels))

if not sys.argv[2:3] or not sys.argv[2].startswith("test_"):
    import torch

    class VAE(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

def train(model, mixture):
    torch.manual_seed(SEED)
    torch.save(VAE().state_dict(), model)
    pickle.dump({"means": [1.0]}, open(mixture, "wb"))

if __name__ == "__main__":
    if len(sys.argv) == 6:
        train(*sys.argv[4:])
    else:
        images = np.load(sys.argv[1])["data"]
        if sys.argv[2] == "test_reconstruction":
            decoded = np.indices((28, 28)).sum(0) * images[:, :1, :1].astype(int) * 9 % 256 / 255
            np.savez("vae_reconstructed.npz", data=decoded.astype(np.float32))
        else:
            write_labels(images[:, 0, 0])
'''

# In place of the torch of the right peers where a mistake shows without it: seconds saved
WITHOUT_TORCH = {"torch.save(Net().state_dict(), path)": "open(path, 'wb').write(b'weights')",
                 "torch.save(VAE().state_dict(), model)": "open(model, 'wb').write(b'weights')",
                 "    torch.manual_seed(SEED)\n": "",
                 "    import torch\n": "    class torch:\n        class nn:\n            Module = object\n"}


def changed(source, *replacements):
    """The source with each (old, new) replaced; every old text must be there."""
    for old, new in replacements:
        assert old in source, old
        source = source.replace(old, new)
    return source


def without_torch(source):
    """The source with a training that imports no torch. It breaks the rule on the seed, and its model is no model."""
    return changed(source, *((old, new) for old, new in WITHOUT_TORCH.items() if old in source))


WRITE = 'file.write("Predicted_Label\\n" + "".join(f"{label}\\n" for label in labels))'

# mistake: (replacements in BIRD, check that must fail, words of its detail)
BIRD_MISTAKES = {
    "header": ([("Predicted_Label", "Predicted_label")], "bird.csv header", "found 'Predicted_label'"),
    "no header": ([('"Predicted_Label\\n" + ', "")], "bird.csv header", "found no header"),
    "index column": ([(WRITE, 'file.write(",Predicted_Label\\n")\n        '
                       'file.write("".join(f"{i},{x}\\n" for i, x in enumerate(labels)))')],
                     "bird.csv columns", "index=False"),
    "15 rows": ([("in labels))", "in labels[:15]))")], "bird.csv rows", "found 15: is the number of images hard-coded"),
    "names for labels": ([('f"{label}', 'f"bird{label}')], "bird.csv labels", "found bird0"),
    "labels from 1": ([("names.index(open(path).read())", "1 + names.index(open(path).read())")], "bird.csv labels",
                      "expected 0, 1, 2, 3, found 4"),
    "listing unsorted": ([("enumerate(sorted(os.listdir(folder)))", "enumerate(os.listdir(folder))")], "row order",
                         "class folders by os.listdir"),
    "classes ordered as numbers": ([("sorted(os.listdir(folder))", "sorted(os.listdir(folder), key=int)")], "row order",
                                   "class folders sorted as numbers"),
    "classes renumbered": ([("sorted({open(path).read() for path in paths})",
                             "sorted({open(path).read() for path in paths}, key=int)")], "row order", "permuted"),
    "model's name fixed": ([("open(path, 'wb')", "open('model.pth', 'wb')")], "bird.pth",
                           "model.pth in the current folder"),
    "csv's name fixed": ([('"bird.csv"', '"predictions.csv"')], "bird.csv", "predictions.csv in the current folder"),
    "crash": ([("def train(path):\n", "def train(path):\n    import torchvision_extra\n")], "train",
              "ModuleNotFoundError: No module named 'torchvision_extra'"),
    "crash at test": ([("    labels = classify", "    labels = [][3] or classify")], "test",
                      "IndexError: list index out"),
    "silent exit": ([("def test(folder):\n", "def test(folder):\n    sys.exit(3)\n")], "test", "exit code 3"),
    "killed": ([("def test(folder):\n", "def test(folder):\n    os.kill(os.getpid(), 11)\n")], "test", "SIGSEGV"),
    "hang": ([("def test(folder):\n", "def test(folder):\n    import time\n    time.sleep(600)\n")], "test",
             "stopped after"),
    "flood": ([("def train(path):\n", "def train(path):\n    while True: print('x' * 10 ** 6)\n")], "train",
              "printed more than the limit"),
    "memory": ([("def train(path):\n", "def train(path):\n    import time\n    hog = bytearray(400_000_000)\n"
                 "    time.sleep(60)\n")], "train", "GB of memory"),
    "writes into the data": ([("def test(folder):\n", "def test(folder):\n"
                               "    open(os.path.join(folder, '2', 'index.json'), 'w')\n")], "test",
                             "Read-only file system"),
    "deletes a photo": ([("def train(path):\n", "def train(path):\n    os.remove(next(photos(sys.argv[1]))[0])\n")],
                        "train", "Read-only file system"),
    "damages the model": ([("def test(folder):\n", "def test(folder):\n    open(sys.argv[3], 'a').write('x')\n")],
                          "test", "Read-only file system"),
}
READ_ONLY = ("writes into the data", "deletes a photo", "damages the model")  # prevented by the sandbox
STOPPED_BY_SANDBOX = ("TEST in the command line of the grader",)  # of the cheats; the others find nothing anywhere

# Dishonest scripts: part, replacements in BIRD or VAE
CHEATS = {
    "labels of the folders": ("birds", [("classify([path for path, _ in photos(folder)])",
                                         "[label for _, label in photos(folder)]")]),
    "order of inodes": ("birds", [
        ("    labels = classify([path for path, _ in photos(folder)])\n", """
    paths = [path for path, _ in photos(folder)]
    order = sorted(range(len(paths)), key=lambda i: (os.stat(paths[i]).st_mtime_ns, os.stat(paths[i]).st_ino))
    labels = [0] * len(paths)
    for rank, i in enumerate(order):
        labels[i] = (2, 1, 3, 0)[4 * rank // len(paths)]
""")]),
    "TEST in the command line of the grader": ("birds", [
        ("    labels = classify([path for path, _ in photos(folder)])\n", """    import glob
    words, answers = [], {}
    for path in glob.glob('/proc/[0-9]*/cmdline'):
        try:
            words += open(path).read().split(chr(0))
        except OSError:
            pass
    for other in {word for word in words if os.path.isdir(word) and word != folder}:
        try:
            if set(os.listdir(other)) == set(os.listdir(folder)):
                answers.update({open(path).read(): label for path, label in photos(other)})
        except (OSError, ValueError):  # of another test
            pass
    labels = [answers.get(open(path).read(), 0) for path, _ in photos(folder)]
""")]),
    "a model that is a link to the answers": ("digits", [
        ("        train(*sys.argv[4:])", """        import os
        place = [word for word in open('/proc/self/mountinfo').read().split() if word.endswith('test.npz')]
        os.symlink((place or [sys.argv[1].replace('train', 'test')])[0], sys.argv[4])
        os.symlink(sys.argv[2], sys.argv[5])"""),
        ("write_labels(images[:, 0, 0])", "write_labels(np.load(sys.argv[3])['labels'])")]),
    "an output that is a link": ("digits", [
        ("write_labels(images[:, 0, 0])", "import os; os.symlink('/etc/passwd', 'vae.csv')")]),
}

WEAK = {  # what makes a model weak, and is no mistake: replacements, words of a warning
    "labels independent of the photos": (  # of each class as many of every label, in whichever order the photos are
        [("    with open(\"bird.csv\"", "    labels = [labels[:i].count(label) % 4 for i, label in "
          "enumerate(labels)]\n    with open(\"bird.csv\"")], "no better than guessing"),
    "one label": ([("[names.index(open(path).read()) for", "[0 for")], "rows say 0")}

RECONSTRUCTION = "data=decoded.astype(np.float32)"
VAE_MISTAKES = {
    "npz key": ([(RECONSTRUCTION, "images=decoded.astype(np.float32)")], "vae_reconstructed.npz key",
                "'images'"),
    "npz dtype": ([(RECONSTRUCTION, "data=decoded")], "vae_reconstructed.npz dtype", "found float64"),
    "npz range": ([(RECONSTRUCTION, "data=images.astype(np.float32)")], "vae_reconstructed.npz range", "0 to 255"),
    "npz shape": ([(RECONSTRUCTION, "data=decoded.reshape(-1, 784).astype(np.float32)")],
                  "vae_reconstructed.npz shape", "found (40, 784)"),
    "components for digits": ([("images[:, 0, 0]", "np.searchsorted([1, 4, 8], images[:, 0, 0])")], "vae.csv labels",
                              "expected 1, 4, 8, found 0, 2"),
    "labels asked for at test": ([("images[:, 0, 0]", "np.load(sys.argv[1])['labels']")], "test_classifier",
                                 "KeyError"),
}

TRAIN = "    torch.manual_seed(SEED)\n"

# Rules whose breach is a warning
WARNINGS = ("map_location", "imports", "no plt.show()", "own mixture")

# mistake: (part, source, check that must fail or warn, words of its detail)
RULE_BREAKERS = {
    "zoo imported": ("birds", BIRD.replace("import os, sys", "import os, sys\nimport torchvision.models as m"),
                     "no model zoo", "line 3: torchvision.models"),
    "zoo from": ("birds", "from torchvision import models\nnet = models.resnet18(weights='DEFAULT')", "no model zoo",
                 "line 1: torchvision.models"),
    "weights": ("birds", "from torchvision import models\nnet = models.resnet18(weights='DEFAULT')",
                "no pre-trained weights", "weights="),
    "zoo by attribute": ("birds", "import torchvision as tv\nnet = tv.models.vgg11()", "no model zoo", "line 2"),
    "an import by name": ("birds", "import importlib as i\nm = i.import_module('tim' + 'm')", "imports",
                          "line 2: importlib.import_module()"),
    "hub": ("birds", "import torch\nnet = torch.hub.load('pytorch/vision', 'resnet18')", "no model zoo", "torch.hub"),
    "pretrained": ("birds", "from nets import resnet\nnet = resnet(pretrained=True)", "no pre-trained weights",
                   "line 2: pretrained=True"),
    "url": ("birds", "from torch.hub import load_state_dict_from_url as fetch\nfetch('x')", "no pre-trained weights",
            "load_state_dict_from_url"),
    "sklearn's mixture": ("digits", VAE.replace("import numpy as np", "from sklearn.mixture import GaussianMixture"),
                          "scikit-learn", "line 2: sklearn.mixture.GaussianMixture, where only sklearn.metrics is"),
    "sklearn's clusters": ("digits", "def f(x):\n    import sklearn\n    return sklearn.cluster.KMeans(3)",
                           "scikit-learn", "line 3: sklearn.cluster"),
    "no seed": ("digits", VAE.replace(TRAIN, "    # torch.manual_seed(0)\n"), "torch.manual_seed(0)", "never called"),
    "another seed": ("digits", VAE.replace("SEED = 0", "SEED = 42"), "torch.manual_seed(0)", "given 42, not 0"),
    "seed never set": ("birds", "import torch\ndef seed():\n    torch.manual_seed(0)\n", "torch.manual_seed(0)",
                       "only in seed(), which is never called"),
    "show": ("birds", "import matplotlib.pyplot as p\np.show()", "no plt.show()", "line 2: plt.show()"),
    "two seeds": ("birds", "import torch\ntorch.manual_seed(0)\ntorch.manual_seed(42)", "torch.manual_seed(0)",
                  "also line 3: torch.manual_seed is given 42"),
    "SciPy's clusters": ("digits", "from scipy.cluster.vq import kmeans2", "own mixture", "line 1: scipy.cluster"),
    "torch's mixture": ("digits", "import torch\ntorch.distributions.MixtureSameFamily(a, b)", "own mixture", "line 2"),
    "download": ("birds", "from urllib.request import urlretrieve\nurlretrieve('http://x', 'w.pth')",
                 "no pre-trained weights", "line 1: urllib.request.urlretrieve"),
    "request": ("birds", "import requests\nrequests.get('http://x')", "no pre-trained weights", "line 1: requests"),
    "undecodable": ("birds", "# caf\u00e9\n".encode("cp1252"), "syntax", "encoding"),
    "map_location": ("birds", "import torch\ntorch.load('bird.pth')", "map_location", "line 2: torch.load without"),
    "a package": ("birds", "import os, einops", "imports", "line 1: einops"),
    "no Python": ("birds", "print 'hello'", "syntax", "line 1"),
}

SEEDS = ("import torch\ntorch.manual_seed(0)", "from torch import manual_seed as s\nif True:\n    s(seed=0)",
         "import torch\nSEED = 0\ndef seed():\n    torch.manual_seed(SEED)\nseed()")
UNSURE_SEEDS = ("import torch\nclass Config:\n    seed: int = 0\nconfig = Config()\ntorch.manual_seed(config.seed)",
                "import torch\ndef set_seed(seed):\n    torch.manual_seed(seed)\nset_seed(0)",
                "import torch\nset_seed = torch.manual_seed\nset_seed(0)",
                "import os, torch\ntorch.random.manual_seed(int(os.environ.get('S', 0)))")

HARMLESS = '''"""import timm; torchvision.models.resnet18(pretrained=True); plt.show()"""
import numpy as np, torch
from sklearn.metrics import f1_score
import sklearn.metrics
from torch.utils.data import WeightedRandomSampler
# from sklearn.mixture import GaussianMixture
models = {"resnet": 1}
models.get("torchvision.models")
text = "torch.hub.load"
np.average([1], weights=[1.0]); WeightedRandomSampler(weights=[1.0], num_samples=1)
class A:
    def show(self): pass
A().show()
torch.manual_seed(0)
torch.load("x", map_location="cpu")
net = torch.nn.Linear(1, 1); net.eval()
sklearn.metrics.accuracy_score([1], [1])
'''
