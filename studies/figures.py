"""How the pictures of all studies look: curves, grids of images, scatters, GIFs.

Each function takes arrays and returns a matplotlib Figure; none needs a display.
"""
import functools
import io
import math
import re
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

PAGE = 7.0  # inches
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#7F7F7F", "#882255")
# The order of Okabe & Ito 2008 (jfly.uni-koeln.de/color), changed: what is pale on white comes late; two more of ours.
MARKERS = "o^sDvPX*<>"
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "lines.linewidth": 1.4, "patch.linewidth": 0.6, "image.interpolation": "nearest",
    "figure.dpi": 100, "savefig.dpi": 160, "text.parse_math": False,  # names of classes may hold a $
}


class Picture(NamedTuple):
    """A picture of a report."""
    name: str       # of its file, without the ending
    content: bytes  # PNG or GIF
    alt: str        # what it shows, for whom cannot see it
    caption: str

    @property
    def kind(self):
        """"png" or "gif"."""
        return "gif" if self.content[:3] == b"GIF" else "png"

    @property
    def shape(self):
        """(width, height) in px."""
        with Image.open(io.BytesIO(self.content)) as image:
            return image.size


def styled(function):
    """Runs a function under STYLE, whatever the user's own matplotlib settings are."""
    @functools.wraps(function)
    def inner(*args, **kwargs):
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)
    return inner


def marker_of(i):
    """Marker of the i-th class: with its colour, PALETTE[i % 10], another for each of 100 classes."""
    return MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]


def _legend_name(name):
    """The name of a class for a legend, which leaves out what is empty or begins with "_"."""
    return name if name[:1] not in ("", "_") else " " + name


def new_figure(width, height):
    """An empty Figure of this size in inches; it lays itself out when drawn."""
    return Figure(figsize=(width, height), layout="constrained")


@styled
def png_bytes(figure, signature=""):
    """PNG of a Figure, signed below on the right if asked, without dates and versions."""
    if signature:
        figure.set_figheight(figure.get_figheight() + 0.2)
        figure.supxlabel(signature, x=0.995, ha="right", fontsize=7, color="#555555")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def gif_bytes(frames, milliseconds=200, hold=2000):
    """Animated GIF of PNG frames (bytes) that loops; the last frame stays for `hold` ms."""
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    images = [image.resize(images[0].size) if image.size != images[0].size else image for image in images]
    # One palette, of frames from all over, for a palette each would flicker.
    some = images[::max(1, len(images) // 8)][-8:] + images[-1:]
    strip = Image.new("RGB", (images[0].width, images[0].height * len(some)))
    for i, image in enumerate(some):
        strip.paste(image, (0, i * image.height))
    palette = strip.quantize(255)
    images = [image.quantize(palette=palette, dither=0) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], loop=0, optimize=False,
                   duration=[milliseconds] * (len(images) - 1) + [hold])
    return buffer.getvalue()


def mosaic(images, columns, gap=1, paper=1.0):
    """Images (N, C, H, W) in [0, 1] side by side in rows of `columns`, as an array (H', W', 3)."""
    images = np.asarray(images, np.float32)
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), paper, np.float32)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top:top + height, left:left + width] = image.transpose(1, 2, 0)
    return sheet.clip(0, 1)


@styled
def grid_figure(groups, columns=8):
    """Groups {title: images (N, C, H, W) in [0, 1]} of equal N as mosaics side by side."""
    count, n = len(groups), len(next(iter(groups.values())))
    width = PAGE / max(count, 2)
    figure = new_figure(width * count, width * math.ceil(n / columns) / columns + 0.3)
    for axes, (title, images) in zip(figure.subplots(1, count, squeeze=False)[0], groups.items()):
        axes.imshow(mosaic(images, columns))
        axes.set_title(title)
        axes.axis("off")
    return figure


@styled
def rows_figure(rows):
    """Rows {name: images (n, C, H, W) in [0, 1]} one below the other, such as originals and reconstructions."""
    n = len(next(iter(rows.values())))
    figure = new_figure(PAGE, 0.2 + (PAGE - 1.0) / n * len(rows))
    figure.get_layout_engine().set(w_pad=0.12)  # images of a fixed shape leave long names too little room
    axes = figure.subplots()
    sheet = mosaic(np.concatenate([np.asarray(images) for images in rows.values()]), n, gap=2)
    height = sheet.shape[0] / len(rows)
    axes.imshow(sheet)
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def sheet_png(groups, columns=8, signature=""):
    """PNG of groups {title: images (N, C, H, W) in [0, 1]} of equal N as mosaics side by side, pixel by pixel, where
    grid_figure would resample them."""
    from matplotlib.font_manager import findfont
    sheets = [Image.fromarray((255 * mosaic(images, columns, gap=2)).round().astype(np.uint8))
              for images in groups.values()]
    (width, height), apart, line = sheets[0].size, 16, 22
    paper = Image.new("RGB", ((width + apart) * len(sheets) - apart, height + line * (2 if signature else 1)), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.truetype(findfont("DejaVu Sans"), 13)
    for i, (title, sheet) in enumerate(zip(groups, sheets)):
        paper.paste(sheet, (i * (width + apart), line))
        pen.text((i * (width + apart) + width / 2, line / 2), title, "#1c1d20", font, "mm")
    if signature:
        pen.text((paper.width - 4, line * 1.5 + height), signature, "#555555", font, "rm")
    buffer = io.BytesIO()
    paper.save(buffer, format="PNG")
    return buffer.getvalue()


@styled
def curves_figure(panels, unit, x_label="epoch", common_scale=False):
    """Panels {title: {label: values by epoch}} side by side; `unit` labels the vertical axis. Labels that begin with
    "test" or "held-out" are dashed; colours follow the rest of the label."""
    figure = new_figure(PAGE, 2.6)
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=common_scale)[0],
                                     panels.items()):
        plain = {label: re.sub("^(training|test|held-out) ", "", label) for label in curves}
        order = list(dict.fromkeys(plain.values()))
        for label, values in curves.items():
            dashed = label.startswith(("test", "held-out"))
            axes.plot(range(1, len(values) + 1), values, "--" if dashed else "-", label=label,
                      color=PALETTE[order.index(plain[label]) % len(PALETTE)], marker="." if len(values) < 4 else "")
        axes.set(title=title, xlabel=x_label, ylabel=unit)
        first, later = (np.concatenate([values[part] for values in curves.values()])
                        for part in (slice(1), slice(1, None)))
        if len(later) and first.max() > later.max() + 10 * np.ptp(later) > later.max():
            # One leap would flatten all that follows.
            axes.set_ylim(later.min() - 0.1 * np.ptp(later), later.max() + 0.3 * np.ptp(later))
            axes.set_xlabel(f"{x_label} ({x_label} 1 is above, up to {first.max():.3g})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelleft=True)
        axes.legend()
    return figure


@styled
def measured_figure(panels, x_label="epoch"):
    """Panels {title: (unit, {label: (x values, y values)}, {label: level}, what the levels are of)}, two in a row:
    points joined by lines, and a level to compare each with, dashed."""
    rows = math.ceil(len(panels) / 2)
    figure = new_figure(PAGE, 2.4 * rows)
    places = figure.subplots(rows, 2, squeeze=False).flat
    for (title, (unit, curves, levels, of_what)), axes in zip(panels.items(), places):
        for color, (label, (x, y)) in zip(PALETTE, curves.items()):
            axes.plot(x, y, label=label if len(curves) > 1 else "samples", color=color, marker=".")
            axes.axhline(levels[label], color=color, linestyle="--", linewidth=1)
        axes.plot([], [], "--", color="#555555", linewidth=1, label=of_what)
        axes.set(title=title, xlabel=x_label, ylabel=unit)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    for axes in places:
        axes.remove()
    return figure


@styled
def scatter_figure(panels, labels, classes):
    """Panels {title: points (N, 2)} side by side, coloured and marked by labels (N,), one legend below."""
    figure = new_figure(PAGE, PAGE / max(len(panels), 2) + 0.5)
    labels = np.asarray(labels)
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for i, name in enumerate(classes):
            chosen = labels == i
            axes.scatter(points[chosen, 0], points[chosen, 1], 7, PALETTE[i % len(PALETTE)],
                         marker=marker_of(i), label=_legend_name(name), alpha=0.75, linewidths=0)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(10, len(names)), markerscale=1.8,
                  handletextpad=0.1, columnspacing=1.0)
    return figure


@styled
def latent_frame(points, labels, classes, limits, rows, title):
    """Points (N, 2) by class within `limits` ((x0, x1), (y0, y1)), with the circles of one and two standard deviations
    of N(0, I), and under them `rows` {name: images (n, C, H, W) in [0, 1]}: a frame of a GIF."""
    figure, turn = new_figure(4.4, 5.3), np.linspace(0, 2 * np.pi, 200)
    above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [4, 1]})
    for radius in (1, 2):
        above.plot(radius * np.cos(turn), radius * np.sin(turn), color="#999999", linewidth=0.7, zorder=3)
    for i, name in enumerate(classes):
        chosen = np.asarray(points)[np.asarray(labels) == i]
        above.scatter(chosen[:, 0], chosen[:, 1], 6, PALETTE[i % len(PALETTE)], marker=marker_of(i),
                      label=_legend_name(name), alpha=0.6, linewidths=0)
    above.set(title=title, xlim=limits[0], ylim=limits[1], aspect="equal")
    above.set_xlabel("$z_1$", parse_math=True)
    above.set_ylabel("$z_2$", parse_math=True)
    sheet = mosaic(np.concatenate([np.asarray(images) for images in rows.values()]), len(next(iter(rows.values()))))
    below.imshow(sheet)
    below.set_yticks([sheet.shape[0] / len(rows) * (i + 0.5) for i in range(len(rows))], list(rows))
    below.set_xticks([])
    below.tick_params(length=0)
    below.spines[:].set_visible(False)
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=min(10, len(classes)),
                  markerscale=1.8, handletextpad=0.1, columnspacing=1.0)
    return figure


def fixed_limits(frames):
    """((x0, x1), (y0, y1)): one square for all frames, points (N, 2) each, that holds every point and the circle of two
    standard deviations of N(0, I)."""
    every = np.concatenate([np.asarray(points) for points in frames])
    low, high = np.minimum(every.min(0), -2), np.maximum(every.max(0), 2)
    half = 0.53 * float((high - low).max())
    return tuple((float(middle) - half, float(middle) + half) for middle in (low + high) / 2)


@styled
def intervals_figure(bars, x_label):
    """Horizontal bars {name: (value, (low, high))} of shares, each with its interval; the first is what the others are
    compared with, and grey."""
    figure = new_figure(PAGE, 0.7 + 0.42 * len(bars))
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
