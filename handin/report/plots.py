"""Style, layout and tables shared by the figures of both parts."""
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
    """An empty Figure of this size in inches, `tight` for images close together; needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if tight:
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    return figure


def truncate(name, max_length):
    """A name, cut to at most `max_length` characters."""
    return name if len(name) <= max_length else name[:max_length - 1] + "…"


def epochs_figure(rows, height, panels):
    """Panels {label of the y axis: [(key of the rows, factor, options of the line)]} side by side: values against
    epochs, from the rows of a history."""
    figure = new_figure(PAGE, height)
    for axes, (label, lines) in zip(figure.subplots(1, len(panels)), panels.items()):
        for key, factor, options in lines:
            axes.plot([row["epoch"] for row in rows], [factor * row[key] for row in rows],
                      marker="." if len(rows) < 15 else None, **options)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def layer_rows(network, shape, depth, labels):
    """[{"name", "shape", "parameters"}] of a network's layers at a depth, by torchinfo, for one input of this shape.
    `labels` {class name: name of the layer or function of it} select the layers; after a comma they extend a row."""
    import torchinfo
    rows = []
    for layer in torchinfo.summary(network.eval(), (1, *shape), depth=depth, verbose=0, device="cpu").summary_list:
        label = labels.get(layer.class_name) if layer.depth == depth or layer.is_leaf_layer else None
        if label:
            name = label if isinstance(label, str) else label(layer.module)
            if not name.startswith(","):
                rows.append({"name": "", "shape": list(layer.output_size[1:]), "parameters": 0})
            rows[-1]["name"] += name
            rows[-1]["parameters"] += sum(p.numel() for p in layer.module.parameters())
    return rows


def figure_bytes(figure):
    """{".png": bytes, ".pdf": bytes} of a Figure, without dates and versions, which would differ from run to run."""
    files = {}
    for ending, metadata in ((".png", {"Software": None}),
                             (".pdf", {"Creator": None, "Producer": None, "CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending[1:], metadata=metadata)
        files[ending] = buffer.getvalue()
    return files
