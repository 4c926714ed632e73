"""How the figures of both parts look."""
import functools
import io

import matplotlib.style
from matplotlib.figure import Figure

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


def shortened(name, most):
    """A name of at most so many characters."""
    return name if len(name) <= most else name[:most - 1] + "…"


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
