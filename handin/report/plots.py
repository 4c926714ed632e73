"""How the figures of both parts look."""
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


def style():
    """A context in which figures are drawn and saved in STYLE, whatever the user's own matplotlib settings are."""
    return matplotlib.style.context(["default", STYLE])


def new_figure(width, height, tight=False):
    """An empty Figure of this size in inches, `tight` for pictures close together; it needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if tight:
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    return figure


def class_styles(classes):
    """{class: (colour, marker)}: both, so that the colour-blind tell classes apart; 64 different pairs."""
    return {name: (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
            for i, name in enumerate(classes)}


def shortened(name, most):
    """A name of at most so many characters."""
    return name if len(name) <= most else name[:most - 1] + "…"


def figure_bytes(figure):
    """{".png": bytes, ".pdf": bytes} of a Figure, without dates and versions, which would differ from run to run."""
    files = {}
    for ending, metadata in ((".png", {"Software": None}),
                             (".pdf", {"Creator": None, "Producer": None, "CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending[1:], metadata=metadata)
        files[ending] = buffer.getvalue()
    return files
