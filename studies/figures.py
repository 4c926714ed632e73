"""How the figures of all studies look: curves, grids of images, scatter plots, GIFs.

Each function takes arrays and returns a matplotlib Figure; none needs a display. Images are (N, C, H, W) in [0, 1].
"""
import functools
import io
from typing import NamedTuple

import imageio.v3 as imageio
import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from torchvision.utils import make_grid

WIDTH = 7.0  # inches, of a page
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#7F7F7F", "#882255")
# The order of Okabe & Ito 2008 (jfly.uni-koeln.de/color), changed: what is pale on white comes late; two more of ours.
MARKERS = "o^sDvPX*<>"
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "lines.linewidth": 1.4, "image.interpolation": "nearest", "figure.dpi": 100,
    "savefig.dpi": 160, "text.parse_math": False}  # names of classes may hold a $


class Picture(NamedTuple):
    """A picture of a report."""
    name: str       # of its file, without the ending
    content: bytes  # PNG or GIF
    alt: str        # what it shows, for readers who cannot see it
    caption: str

    @property
    def kind(self):
        """"png" or "gif"."""
        return "gif" if self.content[:3] == b"GIF" else "png"

    @property
    def size(self):
        """(width, height) in px."""
        height, width = imageio.improps(self.content, index=0).shape[:2]
        return width, height


class Album:
    """The pictures of a report in their order, each signed if asked."""

    def __init__(self, signature=""):
        self.signature, self.pictures = signature, {}

    def add(self, name, figure, alt, caption):
        """Keeps a Figure, or the bytes of a PNG or GIF, as a Picture."""
        content = figure if isinstance(figure, bytes) else png_bytes(figure, self.signature)
        self.pictures[name] = Picture(name, content, alt, caption)

    def __getitem__(self, name):
        return self.pictures[name]


def styled(function):
    """Runs a function under STYLE, whatever the user's own matplotlib settings are."""
    @functools.wraps(function)
    def inner(*args, **kwargs):
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)
    return inner


def new_figure(width, height):
    """An empty Figure of this size in inches; it lays itself out when drawn."""
    return Figure(figsize=(width, height), layout="constrained")


@styled
def png_bytes(figure, signature="", tight=True, dpi=160):
    """PNG of a Figure, cropped to what is drawn if `tight`, with a line below for the signature if there is one,
    without dates and versions."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what follows moves nothing
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)  # in place of the page, which is cropped
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox() if tight else Bbox([[0, 0], [width - 0.05, height]])  # inches
    if signature:
        figure.text(box.x1 / width, (box.y0 - 0.02) / height, signature, ha="right", va="top", fontsize=7,
                    color="#555555")
    below = Bbox([[0, -0.16 * bool(signature)], [width, height]])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight" if tight else below, dpi=dpi)
    return buffer.getvalue()


def gif_bytes(figures, signature="", milliseconds=200, hold=2000, dpi=160, colours=256):
    """Animated GIF of Figures of one size, in so many colours, that loops; the last one stays for `hold` ms."""
    frames = [imageio.imread(png_bytes(figure, signature, False, dpi))[..., :3] for figure in figures]
    frames = [np.asarray(Image.fromarray(frame).quantize(colours, Image.MAXCOVERAGE, dither=0).convert("RGB"))
              for frame in frames]  # this method keeps the rare colours of a few points and of the legend
    return imageio.imwrite("<bytes>", frames, extension=".gif", plugin="pillow", loop=0, optimize=False,
                           duration=[milliseconds] * (len(frames) - 1) + [hold])


def tiled(images, columns, padding=1):
    """Images side by side in rows of `columns`, white between them, as an array (H', W', 3)."""
    images = torch.as_tensor(images).float().clamp(0, 1)
    return make_grid(images, columns, padding, pad_value=1).permute(1, 2, 0).numpy()


@styled
def grid_figure(groups, columns=8, per_row=None):
    """Groups {title: images} of equal N, each a grid of so many columns, side by side or `per_row` in a row."""
    per_row = per_row or len(groups)
    lines, n = -(-len(groups) // per_row), len(next(iter(groups.values())))
    width = WIDTH / max(per_row, 2 if columns < 16 else 1)
    figure = new_figure(width * per_row, lines * (width * -(-n // columns) / columns + 0.3))
    for axes, (title, images) in zip(figure.subplots(lines, per_row, squeeze=False).flat, groups.items()):
        axes.imshow(tiled(images, columns))
        axes.set_title(title)
    for axes in figure.axes:
        axes.axis("off")
    return figure


@styled
def named_figure(images, names, columns=5):
    """Each of a few images under its own name."""
    rows = -(-len(images) // columns)
    figure = new_figure(WIDTH, WIDTH / columns * 1.15 * rows)
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes, image, name in zip(places, images, names):
        axes.imshow(tiled(image[None], 1, 0))
        axes.set_title(name)
    for axes in figure.axes:
        axes.axis("off")
    return figure


@styled
def rows_figure(rows):
    """Rows {name: images} one below the other, such as originals and reconstructions."""
    n = len(next(iter(rows.values())))
    figure = new_figure(WIDTH, 0.2 + (WIDTH - 1.0) / n * len(rows))
    figure.get_layout_engine().set(w_pad=0.12)  # images of a fixed shape leave long names too little room
    _draw_rows(figure.subplots(), rows)
    return figure


def _draw_rows(axes, rows):
    tiles = tiled(torch.cat([torch.as_tensor(images) for images in rows.values()]), len(next(iter(rows.values()))))
    axes.imshow(tiles)
    axes.set_yticks([tiles.shape[0] / len(rows) * (i + 0.5) for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@styled
def curves_figure(panels, unit, x_label="epoch", common_scale=False):
    """Panels {title: {label: values by epoch, or (x, y)}} side by side; `unit` labels the vertical axis, the
    same of all or {title: unit}. Labels that begin with "held-out" are dashed; colours follow the rest of the label."""
    many = len({tuple(curves) for curves in panels.values()}) == 1 and len(next(iter(panels.values()))) > 3
    figure = new_figure(WIDTH, 3.0 if many else 2.6)
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=common_scale)[0],
                                     panels.items()):
        plain = {label: label.replace("training ", "").replace("held-out ", "") for label in curves}
        order = list(dict.fromkeys(plain.values()))
        for label, values in curves.items():
            x, y = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
            axes.plot(x, y, "--" if label.startswith("held-out") else "-", label=label,
                      color=PALETTE[order.index(plain[label]) % len(PALETTE)], marker="." if len(y) < 16 else "")
        every = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
        axes.set_xlabel(x_label)
        later = np.concatenate([np.asarray(line.get_ydata(), float)[1:] for line in axes.lines])
        if len(y) > 3 and every.max() > later.max() + 10 * np.ptp(later) > later.max():
            # The first epoch's value would flatten all that follows.
            axes.set_ylim(later.min() - 0.1 * np.ptp(later), later.max() + 0.3 * np.ptp(later))
            axes.set_xlabel(f"{x_label}\n(first values, up to {every.max():.3g}, outside)")
        axes.set(title=title, ylabel=unit if isinstance(unit, str) else unit[title])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelleft=True)
        if not many:
            axes.legend()
    if many:  # the same in all panels
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=-(-len(curves) // 2))
    return figure


def _scatter(axes, points, labels, classes, size):
    points, labels = np.asarray(points), np.asarray(labels)
    for i, name in enumerate(classes):
        chosen = points[labels == i]
        axes.scatter(chosen[:, 0], chosen[:, 1], size, PALETTE[i % len(PALETTE)], linewidths=0, alpha=0.7,
                     marker=MARKERS[(i + i // len(PALETTE)) % len(MARKERS)],  # with its colour, unique to 100 classes
                     label=name if name[:1] not in ("", "_") else " " + name)  # a legend leaves these out
    return axes.get_legend_handles_labels()


def _legend_below(figure, handles, names):
    figure.legend(handles, names, loc="outside lower center", ncols=min(10, len(names)), markerscale=1.8,
                  handletextpad=0.1, columnspacing=1.0)


@styled
def scatter_figure(panels, labels, classes):
    """Panels {title: points (N, 2)} side by side, coloured and marked by labels (N,), one legend below."""
    figure = new_figure(WIDTH, WIDTH / max(len(panels), 2) + 0.5)
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        legend = _scatter(axes, points, labels, classes, 7)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    _legend_below(figure, *legend)
    return figure


@styled
def latent_frame(points, labels, classes, limit, rows, title):
    """Points (N, 2) by class within -limit..limit, with the circles of one and two standard deviations of N(0, I), and
    under them `rows` {name: images}: a frame of a GIF."""
    figure, turn = new_figure(4.4, 5.3), np.linspace(0, 2 * np.pi, 200)
    above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [4, 1]})
    for radius in (1, 2):
        above.plot(radius * np.cos(turn), radius * np.sin(turn), color="#999999", linewidth=0.7, zorder=3)
    legend = _scatter(above, points, labels, classes, 6)
    above.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    above.set_xlabel("$z_1$", parse_math=True)
    above.set_ylabel("$z_2$", parse_math=True)
    _draw_rows(below, rows)
    _legend_below(figure, *legend)
    return figure


@styled
def intervals_figure(bars, x_label):
    """Horizontal bars {name: (value, (low, high))} of proportions with their intervals; the first is what the others
    are compared with, and grey."""
    figure = new_figure(WIDTH, 0.7 + 0.42 * len(bars))
    axes = figure.subplots()
    values, intervals = zip(*bars.values())
    reach = [[value - low, high - value] for value, (low, high) in zip(values, intervals)]
    axes.barh(range(len(bars)), values, 0.62, xerr=np.transpose(reach), capsize=3, ecolor="#1c1d20",
              error_kw={"elinewidth": 1}, color=["#bbbbbb", *[PALETTE[0]] * (len(bars) - 1)])
    for place, (value, (_, high)) in enumerate(zip(values, intervals)):
        axes.annotate(f"{100 * value:.1f} %", (high, place), (6, 0), textcoords="offset points", va="center")
    axes.axvline(values[0], color="#7f7f7f", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set(xlabel=x_label, xlim=(0, min(1.12, 1.18 * max(high for _, high in intervals))))
    axes.invert_yaxis()
    return figure
