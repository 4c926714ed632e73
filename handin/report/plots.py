"""How the figures of both parts look."""
import io

import matplotlib.style
from matplotlib.figure import Figure

from common import plots

COLUMN, PAGE = 3.4, 7.0  # inches: one column of a two-column page, and both
STYLE = {
    **plots.STYLE, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "legend.fontsize": 7.5,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "patch.linewidth": 0.6, "image.interpolation": "nearest", "figure.dpi": 100, "savefig.dpi": 200, "pdf.fonttype": 42}


def style():
    """A context in which figures are drawn and saved in STYLE, whatever the user's own matplotlib settings are."""
    return matplotlib.style.context(["default", STYLE])


def new_figure(width, height, tight=False):
    """An empty Figure of this size in inches, `tight` for pictures close together; it needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if tight:
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    return figure


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
