"""Draws the pictures that the assignment asks for and measures what the report states, from saved models.

Nothing is trained. Each picture becomes FIGURES/NAME.png (200 dpi) and FIGURES/NAME.pdf, the numbers go to
FIGURES/numbers.json, whose other part is kept. The digits give FIGURES/latent.html too, a page that shows what the
model makes of each point of the latent plane. The same input gives the same bytes.
"""
import functools
import io
import json
import os
import sys
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from tqdm import tqdm

import bird
import vae
from common.errors import InputError, bad_input_of

EXAMPLE = "python -m handin figures birds TEST --model bird.pth"

COLUMN, PAGE = 3.4, 7.0  # inches: one column of a two-column page, and both
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# The order of Okabe & Ito 2008 (jfly.uni-koeln.de/color), changed: what is pale on white comes last.
MARKERS = "o^sDvPX*"
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2,
    "patch.linewidth": 0.6, "image.interpolation": "nearest", "figure.dpi": 100, "savefig.dpi": 200, "pdf.fonttype": 42,
}


# --------------------------------------------------------------------------------------------------------------- style

def styled(function):
    """Runs a function under STYLE, whatever the user's own matplotlib settings are; a Figure that it returns keeps
    STYLE wherever it is shown."""
    @functools.wraps(function)
    def inner(*args, **kwargs):
        with matplotlib.style.context(["default", STYLE]):
            made = function(*args, **kwargs)
            if isinstance(made, Figure):
                made.draw_without_rendering()  # ticks take their sizes when first drawn
            return made
    return inner


def new_figure(width, height):
    """An empty Figure of this size in inches; it needs no display and lays itself out when drawn."""
    return Figure(figsize=(width, height), layout="constrained")


def class_styles(classes):
    """{class: (colour, marker)}; two signs, since colours alone do not reach every reader."""
    return {name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(classes)}


def plural(number, noun):
    """'1 photo', '1,200 photos'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@styled
def figure_bytes(figure):
    """{".png": bytes, ".pdf": bytes} of a Figure, without dates and versions, which would differ from run to run."""
    files = {}
    for ending, metadata in ((".png", {"Software": None}),
                             (".pdf", {"Creator": None, "Producer": None, "CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending[1:], metadata=metadata)
        files[ending] = buffer.getvalue()
    return files


# ------------------------------------------------------------------------------------------------------------- numbers

def macro_scores(truth, predicted):
    """What both parts state of two label arrays (N,): average F1 as the course's grader has it, accuracy, and the means
    of precision, recall and F1 over the classes that occur; a class never predicted has precision 0."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    from handin.scores import average_f1
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    return {"average_f1": float(average_f1(truth, predicted)), "accuracy": float(accuracy_score(truth, predicted)),
            "macro_precision": float(precision), "macro_recall": float(recall), "macro_f1": float(f1)}


def read_numbers(folder):
    """What FIGURES/numbers.json holds, a dict of parts; empty when there is none. Raises InputError."""
    path = Path(folder) / "numbers.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the JSON that an earlier run wrote, found: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object of parts, found a {type(found).__name__}")
    return found


def save(folder, part, figures, pages, numbers):
    """Writes the figures {name: Figure}, the pages {file name: bytes} and the numbers of one part into an existing
    folder; returns the paths. All are written beside their places before the first is moved in. Raises InputError."""
    payloads = {os.path.join(str(folder), name): content for name, content in pages.items()}
    for name, figure in figures.items():
        for ending, content in figure_bytes(figure).items():
            payloads[os.path.join(str(folder), name + ending)] = content
    whole = {**read_numbers(folder), part: numbers}
    payloads[os.path.join(str(folder), "numbers.json")] = (json.dumps(whole, indent=1) + "\n").encode()
    with bad_input_of(bird):
        bird.write_files(payloads)
    return list(payloads)


# -------------------------------------------------------------------------------------------------------- command line

def add_arguments(parser):
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    birds = parts.add_parser("birds", help="network, learning curves, confusion, Grad-CAM",
                             description="example: python -m handin figures birds TEST --model bird.pth")
    birds.add_argument("test", metavar="TEST", help="folder of class folders of photos that were not trained on")
    birds.add_argument("--model", required=True, metavar="FILE", help="bird.pth")
    birds.add_argument("--history", metavar="FILE", help="bird_history.json (default: the one beside the model)")
    birds.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), metavar="N",
                       help="threads that decode photos (default: one a core)")
    digits = parts.add_parser("digits", help="reconstructions, manifold, latents, mixture, SSIM, latent.html",
                              description="example: python -m handin figures digits VAL TEST --train TRAIN "
                                          "--model vae.pth --mixture gmm_params.pkl")
    digits.add_argument("val", metavar="VAL", help="the labelled digits that named the clusters, .npz")
    digits.add_argument("test", metavar="TEST", help="digits that were not trained on, .npz, with labels or without")
    digits.add_argument("--train", metavar="TRAIN", help="the training images, .npz: the latents that are drawn, "
                        "labels in the file give their colours alone (default: those of the test)")
    digits.add_argument("--model", required=True, metavar="FILE", help="vae.pth")
    digits.add_argument("--mixture", required=True, metavar="FILE", help="gmm_params.pkl")
    for part in (birds, digits):
        part.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER",
                          help="where the pictures and numbers.json go (default: figures)")
        part.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best there)")


def run(args):
    """Draws one part; returns the exit code. Raises InputError."""
    if args.part == "birds" and args.workers < 1:
        raise InputError(f"figures: expected --workers of 1 or more, found {args.workers}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out}: expected a folder for the figures, found: {error.strerror}") from None
    read_numbers(args.out)  # a broken one must not cost the minutes before
    progress = functools.partial(tqdm, file=sys.stderr, unit="step", leave=False,
                                 disable=None)  # none where stderr is a file
    with bad_input_of(bird, vae):
        if args.part == "birds":
            from handin.figures_birds import draw_all
            figures, numbers, remarks = draw_all(args.test, args.model, args.history, bird.pick_device(args.device),
                                                 args.workers, progress)
            pages = {}
        else:
            from handin.figures_digits import draw_all
            figures, pages, numbers, remarks = draw_all(args.val, args.test, args.train, args.model, args.mixture,
                                                        vae.pick_device(args.device), progress)
        paths = save(args.out, args.part, figures, pages, numbers)
    for remark in remarks:
        print(remark, file=sys.stderr)
    others = " and ".join([*pages, "numbers.json"])
    print(f"wrote {len(figures)} figures, each as PNG and PDF, and {others}: {len(paths)} files in {args.out}")
    return 0
