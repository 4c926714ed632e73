"""How the figures of all studies look: curves, grids of images (N, C, H, W) in [0, 1], scatter plots, GIFs."""
import io
from typing import NamedTuple

import imageio.v3 as imageio
import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.utils import make_grid

WIDTH = 7.0       # inches, of a page
MAX_FRAMES = 60  # of a GIF
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#7F7F7F", "#882255")
# The order of Okabe & Ito 2008 (jfly.uni-koeln.de/color), changed: what is pale on white comes late; two more of ours.
MARKERS = "o^sDvPX*<>"
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "lines.linewidth": 1.4, "image.interpolation": "nearest", "figure.dpi": 100,
    "figure.constrained_layout.use": True, "text.parse_math": False}  # names of classes may hold a $
matplotlib.style.use(["default", STYLE])  # whatever the user's own settings are


class Picture(NamedTuple):
    """A picture of a report."""
    name: str       # of its file, without the ending
    content: bytes  # PNG or GIF
    caption: str    # what it shows, also for readers who cannot see it

    @property
    def kind(self):
        """"png" or "gif"."""
        return "gif" if self.content[:3] == b"GIF" else "png"

    @property
    def size(self):
        """(width, height) in px."""
        return Image.open(io.BytesIO(self.content)).size


def picture(signature, name, figure, caption):
    """A Picture of a Figure, or of an iterable of Figures as a GIF, each signed if asked."""
    make = png_bytes if isinstance(figure, Figure) else gif_bytes
    return Picture(name, make(figure, signature), caption)


def png_bytes(figure, signature="", crop="tight", dpi=160):
    """PNG of a Figure, cropped to what is drawn unless `crop` is None; the signature stands in a line above."""
    if signature:
        figure.set_figheight(figure.get_figheight() + 0.15)
        figure.suptitle(signature, x=0.995, ha="right", fontsize=7, color="#555555")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches=crop, dpi=dpi)
    return buffer.getvalue()


def gif_bytes(figures, signature=""):
    """Animated GIF of Figures of one size that loops, 200 ms a frame and 2 s for the last."""
    frames = [imageio.imread(png_bytes(figure, signature, None, 100))[..., :3] for figure in figures]
    frames = [np.asarray(Image.fromarray(frame).quantize(256, Image.MAXCOVERAGE, dither=0).convert("RGB"))
              for frame in frames]  # this method keeps the rare colours of a few points and of the legend
    return imageio.imwrite("<bytes>", frames, extension=".gif", plugin="pillow", loop=0, optimize=False,
                           duration=[200] * (len(frames) - 1) + [2000] if len(frames) > 1 else 2000)


def spread(frames):
    """The frames, or MAX_FRAMES of them at even distances, the first and the last among them."""
    return [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int))]


def tiled(images, columns):
    """Images side by side in rows of `columns`, white between them, as an array (H', W', 3)."""
    return make_grid(images.clamp(0, 1), columns, 1, pad_value=1).permute(1, 2, 0).numpy()


def grid_figure(groups, columns=8, per_row=None):
    """Groups {title: images} of equal N, each a grid of so many columns, side by side or `per_row` in a row."""
    per_row, n = per_row or len(groups), len(next(iter(groups.values())))
    lines, width = -(-len(groups) // per_row), WIDTH / max(per_row, 2 if columns < 16 else 1)
    figure = Figure((width * per_row, lines * (width * -(-n // columns) / columns + 0.3)))
    for axes, (title, images) in zip(figure.subplots(lines, per_row, squeeze=False).flat, groups.items()):
        axes.imshow(tiled(images, columns))
        axes.set_title(title)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def rows_figure(rows):
    """Rows {name: images} one below the other, such as originals and reconstructions."""
    n = len(next(iter(rows.values())))
    figure = Figure((WIDTH, 0.2 + (WIDTH - 1.0) / n * len(rows)))
    figure.get_layout_engine().set(w_pad=0.12)  # images of a fixed shape leave long names too little room
    _draw_rows(figure.subplots(), rows)
    return figure


def _draw_rows(axes, rows):
    tiles = tiled(torch.cat(list(rows.values())), len(next(iter(rows.values()))))
    axes.imshow(tiles)
    axes.set_yticks([tiles.shape[0] / len(rows) * (i + 0.5) for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def curves_figure(panels, unit="", x_label="epoch"):
    """Panels {title: {label: values by epoch, or (x, y)}} side by side, one legend below; `unit` labels the vertical
    axes. Labels that begin with "held-out" are dashed; colours follow the rest of the label."""
    figure, lines, colours = Figure((WIDTH, 2.8)), {}, {}
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for label, values in curves.items():
            x, y = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
            plain = label.replace("training ", "").replace("held-out ", "")
            colour = colours.setdefault(plain, PALETTE[len(colours) % len(PALETTE)])
            lines[label], = axes.plot(x, y, "--" if label.startswith("held-out") else "-", color=colour,
                                      marker="." if len(y) < 16 else "")
        axes.set(title=title, xlabel=x_label, ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        drawn = np.array([line.get_ydata() for line in axes.lines], float)
        later = drawn[:, 1:]
        if drawn.shape[1] > 3 and drawn.max() > later.max() + 10 * np.ptp(later) > later.max():
            # The first epoch's value would flatten all that follows.
            axes.set_ylim(later.min() - 0.1 * np.ptp(later), later.max() + 0.3 * np.ptp(later))
            axes.set_xlabel(f"{x_label}\n(first values, up to {drawn.max():.3g}, outside)")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4 if len(lines) < 5 else 3)
    return figure


def _scatter(figure, axes, points, labels, classes, size):
    """Draws points (N, 2) by class; gives the figure its legend with the first of the axes."""
    points, labels = np.asarray(points), np.asarray(labels)
    for i, name in enumerate(classes):
        chosen = points[labels == i]
        axes.scatter(chosen[:, 0], chosen[:, 1], size, PALETTE[i % len(PALETTE)], linewidths=0, alpha=0.7,
                     marker=MARKERS[(i + i // len(PALETTE)) % len(MARKERS)],  # with its colour, unique to 100 classes
                     label=name if name[:1] not in ("", "_") else " " + name)  # a legend leaves these out
    if not figure.legends:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(10, len(classes)),
                      markerscale=1.8, handletextpad=0.1, columnspacing=1.0)


def scatter_figure(panels, labels, classes):
    """Panels {title: points (N, 2)} side by side, coloured and marked by labels (N,), one legend below."""
    figure = Figure((WIDTH, WIDTH / max(len(panels), 2) + 0.5))
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        _scatter(figure, axes, points, labels, classes, 7)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    return figure


def latent_frame(points, labels, classes, limit, rows, title):
    """Points (N, 2) by class within -limit..limit, with the circles of one and two standard deviations of N(0, I), and
    under them `rows` {name: images}: a frame of a GIF."""
    figure, turn = Figure((4.4, 5.3)), np.linspace(0, 2 * np.pi, 200)
    above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [4, 1]})
    for radius in (1, 2):
        above.plot(radius * np.cos(turn), radius * np.sin(turn), color="#999999", linewidth=0.7, zorder=3)
    _scatter(figure, above, points, labels, classes, 6)
    above.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    above.set_xlabel("$z_1$", parse_math=True)
    above.set_ylabel("$z_2$", parse_math=True)
    _draw_rows(below, rows)
    return figure
