"""Scripts such as peers hand in, tiny and quick: a right one for each part, and that one with a single mistake; and
their data.

Photos here are files that hold the name of their class."""
import io
import zipfile
from collections import namedtuple

import numpy as np


def as_bytes(content):
    """Bytes of a text, of bytes, or of a zip of {name: content}."""
    if isinstance(content, dict):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, inner in content.items():
                archive.writestr(name, as_bytes(inner))
        return file.getvalue()
    return content if isinstance(content, bytes) else content.encode()


def write_all(folder, files):
    """Writes {path below a folder: content, as `as_bytes` takes it}; returns the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(as_bytes(content))
    return folder


def write_birds(folder):
    """Two folders of classes whose order as strings, as numbers and as listed differ."""
    for part, number in (("train", 4), ("test", 9)):
        for name in ("2", "10", "9", "1"):  # listed forwards, backwards or by hash
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                (folder / part / name / f"{index}{name}.jpg").write_text(name)
    return namedtuple("Birds", "train test")(folder / "train", folder / "test")


def write_digits(folder):
    """Three files of stripes whose first pixel is the label, 1, 4 or 8, with an array of objects that nobody reads. The
    last test image is bright all over."""
    rng = np.random.default_rng(0)
    for name, number in (("train", 60), ("val", 15), ("test", 40)):
        labels = np.array([1, 8, 4])[np.arange(number) % 3] if name != "test" else np.array([1, 8])[np.arange(40) % 2]
        clean = np.indices((28, 28)).sum(0) * labels[:, None, None] * 9 % 256
        images = np.clip(clean + rng.normal(0, 5, clean.shape), 0, 255).astype(np.uint8)
        images[:, 0, 0], images[-1, 1:] = labels, 255
        np.savez(str(folder / f"{name}.npz"), data=images, labels=labels.astype(np.int64), notes=np.array([{}]))
    return namedtuple("Digits", "train val test")(*(folder / f"{name}.npz" for name in ("train", "val", "test")))


BIRD_TORCH = '''"""A comment is not code: torchvision.models, pretrained=True, plt.show()"""
import os, sys
SEED = 0
if sys.argv[2:3] != ["test"]:
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

def photos(folder):
    for label, name in enumerate(sorted(os.listdir(folder))):
        for file in sorted(os.listdir(os.path.join(folder, name))):
            yield os.path.join(folder, name, file), label

def classify(paths):
    names = sorted({open(path).read() for path in paths})
    return [names.index(open(path).read()) for path in paths]

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
VAE_TORCH = '''import pickle, sys
import numpy as np
SEED = 0
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

def write_labels(labels):
    with open("vae.csv", "w") as file:
        file.write("Predicted_Label\\n" + "".join(f"{label}\\n" for label in labels))

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


def _without_torch(source):
    for old, new in (("torch.save(Net().state_dict(), path)", "open(path, 'wb').write(b'weights')"),
                     ("torch.save(VAE().state_dict(), model)", "open(model, 'wb').write(b'weights')"),
                     ("    torch.manual_seed(SEED)\n", ""),
                     ("    import torch\n", "    class torch:\n        class nn:\n            Module = object\n")):
        source = source.replace(old, new)
    return source


# Without torch, which saves seconds. They break the rule on the seed, and their models are none.
BIRD, VAE = _without_torch(BIRD_TORCH), _without_torch(VAE_TORCH)
SOURCES = {"birds": BIRD, "digits": VAE}


def changed(source, *replacements):
    """The source with each (old, new) replaced; every old text must be there."""
    for old, new in replacements:
        assert old in source, old
        source = source.replace(old, new)
    return source


def first(function, *lines):
    """The replacement that puts lines at the start of a function."""
    return f"def {function}:\n", "\n    ".join([f"def {function}:", *lines]) + "\n"


TRAIN, TEST, LABEL = "train(path)", "test(folder)", "names.index(open(path).read())"
CLASSES, NAMES = "sorted(os.listdir(folder))", "sorted({open(path).read() for path in paths})"

BIRD_MISTAKES = {  # check that must fail, words of its detail, replacements in BIRD
    "header": ("bird.csv header", "found 'Predicted_label'", ("Predicted_Label", "Predicted_label")),
    "no header": ("bird.csv header", "found no header", ('"Predicted_Label\\n" + ', "")),
    "index column": ("bird.csv columns", "index=False", ('"Predicted', '",Predicted'), ('f"{label}', 'f"{i},{label}'),
                     ("label in labels", "i, label in enumerate(labels)")),
    "15 rows": ("bird.csv rows", "found 15: is the number of images hard-coded", ("in labels))", "in labels[:15]))")),
    "names for labels": ("bird.csv labels", "found bird0", ('f"{label}', 'f"bird{label}')),
    "labels from 1": ("bird.csv labels", "expected 0, 1, 2, 3, found 4", (LABEL, f"1 + {LABEL}")),
    "listing unsorted": ("row order", "class folders by os.listdir", (CLASSES, "os.listdir(folder)")),
    "sorted as numbers": ("row order", "class folders sorted as numbers", (CLASSES, f"{CLASSES[:-1]}, key=int)")),
    "classes renumbered": ("row order", "permuted", (NAMES, f"{NAMES[:-1]}, key=int)")),
    "model's name fixed": ("bird.pth", "model.pth in the current folder", ("open(path,", "open('model.pth',")),
    "csv's name fixed": ("bird.csv", "predictions.csv in the current folder", ('"bird.csv"', '"predictions.csv"')),
    "crash": ("train", "ModuleNotFoundError: No module named 'extra'", first(TRAIN, "import extra")),
    "crash at test": ("test", "IndexError: list index out", first(TEST, "[][3]")),
    "silent exit": ("test", "exit code 3", first(TEST, "sys.exit(3)")),
    "killed": ("test", "SIGSEGV", first(TEST, "os.kill(os.getpid(), 11)")),
    "hang": ("test", "stopped after", first(TEST, "import time", "time.sleep(600)")),
    "flood": ("train", "printed more than the limit", first(TRAIN, "while True: print('x' * 10 ** 6)")),
    "memory": ("train", "GB of memory", first(TRAIN, "import time", "hog = bytearray(400_000_000)", "time.sleep(60)")),
    "writes into the data": ("test", "Read-only file system", first(TEST, "open(f'{folder}/2/index.json', 'w')")),
    "deletes a photo": ("train", "Read-only file system", first(TRAIN, "os.remove(next(photos(sys.argv[1]))[0])")),
    "labels independent of the photos": ("row order", "no better than chance", (
        '    with open("bird.csv"', '    labels = [labels[:i].count(label) % 4 for i, label in enumerate(labels)]\n'
        '    with open("bird.csv"')),
    "one label": ("row order", "predictions are 0", (f"[{LABEL}", "[0")),
    "damages the model": ("test", "Read-only file system", first(TEST, "open(sys.argv[3], 'a').write('x')")),
}
OF_WEAK_MODELS = ("no better than chance", "predictions are 0")
DECODED, FIRST_PIXELS = "data=decoded.astype(np.float32)", "images[:, 0, 0]"
VAE_MISTAKES = {  # the same for VAE
    "npz key": ("vae_reconstructed.npz key", "'images'", (DECODED, "images=decoded.astype(np.float32)")),
    "npz dtype": ("vae_reconstructed.npz dtype", "found float64", (DECODED, "data=decoded")),
    "npz range": ("vae_reconstructed.npz range", "0 to 255", (DECODED, "data=images.astype(np.float32)")),
    "npz shape": ("vae_reconstructed.npz shape", "found (40, 784)", ("data=decoded", "data=decoded.reshape(-1, 784)")),
    "components for digits": ("vae.csv labels", "expected 1, 4, 8, found 0, 2", (
        FIRST_PIXELS, f"np.searchsorted([1, 4, 8], {FIRST_PIXELS})")),
    "labels asked for at test": ("test_classifier", "KeyError", (FIRST_PIXELS, "np.load(sys.argv[1])['labels']")),
    "sampled latent": ("order of images", "a sampled latent", (  # a warning, though its seed is fixed
        "decoded.astype", "np.clip(decoded + np.random.default_rng(0).normal(0, .1, images.shape), 0, 1).astype")),
}
CLASSIFY = "    labels = classify([path for path, _ in photos(folder)])\n"
# Dishonest scripts: part, whether it finds the answers without a sandbox, replacements in BIRD or VAE
CHEATS = {
    "labels of the folders": ("birds", False, (CLASSIFY, "    labels = [label for _, label in photos(folder)]\n")),
    "order of inodes": ("birds", False, (CLASSIFY, """
    paths = [path for path, _ in photos(folder)]
    order = sorted(range(len(paths)), key=lambda i: (os.stat(paths[i]).st_mtime_ns, os.stat(paths[i]).st_ino))
    labels = [0] * len(paths)
    for rank, i in enumerate(order):
        labels[i] = (2, 1, 3, 0)[4 * rank // len(paths)]
""")),
    "TEST in the command line of the grader": ("birds", True, (CLASSIFY, """    import glob
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
""")),
    "a model that is a link to the answers": ("digits", False, ("        train(*sys.argv[4:])", """        import os
        place = [word for word in open('/proc/self/mountinfo').read().split() if word.endswith('test.npz')]
        os.symlink((place or [sys.argv[1].replace('train', 'test')])[0], sys.argv[4])
        os.symlink(sys.argv[2], sys.argv[5])"""),
        (f"write_labels({FIRST_PIXELS})", "write_labels(np.load(sys.argv[3])['labels'])")),
    "an output that is a link": ("digits", False, (
        f"write_labels({FIRST_PIXELS})", "import os; os.symlink('/etc/passwd', 'vae.csv')")),
}

RESNET = "from torchvision import models\nnet = models.resnet18(weights='DEFAULT')"
ZOO, WEIGHTS, SKLEARN, OWN, SEED = ("no model zoo", "no pre-trained weights", "scikit-learn", "own mixture",
                                    "torch.manual_seed(0)")
RULE_BREAKERS = [  # status of a check, the check, words of its detail, source
    ("fail", ZOO, "line 2: torchvision.models", "import os\nimport torchvision.models as m"),
    ("fail", ZOO, "line 1: torchvision.models", RESNET), ("fail", WEIGHTS, "weights=", RESNET),
    ("fail", ZOO, "line 2", "import torchvision as tv\nnet = tv.models.vgg11()"),
    ("fail", ZOO, "torch.hub", "import torch\nnet = torch.hub.load('pytorch/vision', 'resnet18')"),
    ("fail", WEIGHTS, "line 2: pretrained=True", "from nets import net\nnet(pretrained=True)"),
    ("fail", WEIGHTS, "load_state_dict_from_url", "from torch.hub import load_state_dict_from_url as fetch"),
    ("warn", WEIGHTS, "line 1: urllib.request.urlretrieve", "from urllib.request import urlretrieve"),
    ("warn", WEIGHTS, "line 1: requests", "import requests\nrequests.get('http://x')"),
    ("fail", SKLEARN, "line 2: sklearn.mixture.GaussianMixture, where only sklearn.metrics is",
     "import os\nfrom sklearn.mixture import GaussianMixture"),
    ("fail", SKLEARN, "line 3: sklearn.cluster", "def f(x):\n    import sklearn\n    return sklearn.cluster.KMeans(3)"),
    ("warn", OWN, "line 1: scipy.cluster", "from scipy.cluster.vq import kmeans2"),
    ("warn", OWN, "line 2", "import torch\ntorch.distributions.MixtureSameFamily(a, b)"),
    ("fail", SEED, "never called", "import torch\n# torch.manual_seed(0)"),
    ("fail", SEED, "called with 42, not 0", "import torch\nSEED = 42\ntorch.manual_seed(SEED)"),
    ("fail", SEED, "only in seed(), which is never called", "import torch\ndef seed():\n    torch.manual_seed(0)\n"),
    ("warn", SEED, "also line 3: torch.manual_seed is called with 42",
     "import torch\ntorch.manual_seed(0)\ntorch.manual_seed(42)"),
    ("warn", SEED, "cannot tell", "import torch\nclass A:\n    seed: int = 0\na = A()\ntorch.manual_seed(a.seed)"),
    ("warn", SEED, "cannot tell", "import torch\ndef f(x):\n    torch.manual_seed(x)\nf(0)"),
    ("warn", SEED, "cannot tell", "import torch\nset_seed = torch.manual_seed\nset_seed(0)"),
    ("warn", SEED, "cannot tell", "import os, torch\ntorch.random.manual_seed(int(os.environ['S']))"),
    ("warn", "no plt.show()", "line 2: plt.show()", "import matplotlib.pyplot as p\np.show()"),
    ("warn", "map_location", "line 2: torch.load without", "import torch\ntorch.load('bird.pth')"),
    ("warn", "device", "line 2: model.to('cuda')", "import torch\nmodel.to('cuda')"),
    ("warn", "imports", "line 1: einops", "import os, einops"),
    ("warn", "imports", "line 2: importlib.import_module()", "import importlib as i\ni.import_module('tim' + 'm')"),
    ("fail", "syntax", "line 1", "print 'hello'"), ("fail", "syntax", "encoding", "# caf\u00e9\n".encode("cp1252"))]
HARMLESS = ['''"""import timm; torchvision.models.resnet18(pretrained=True); plt.show()"""
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
''', "import torch\ntorch.manual_seed(0)\nif torch.cuda.is_available():\n    model.to('cuda')",
            "from torch import manual_seed as s\nif True:\n    s(seed=0)",
            "import torch\nSEED = 0\ndef seed():\n    torch.manual_seed(SEED)\nseed()"]
