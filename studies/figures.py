"""How the figures of all studies look: curves, grids of images (N, C, H, W) in [0, 1], scatter plots, GIFs."""
import io
import re
import warnings
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
import torch
from matplotlib import font_manager, patches, style, textpath, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torchvision.utils import make_grid

from common import plots
from common.plots import PALETTE, class_styles

PAGE, DPI = 1100, 128  # px: width of a page, and of an inch (with a power of two no px is lost by rounding)
MARGIN, SPACE, GAP, LINE = 8, 18, 2, 17  # px: around a figure, between its blocks, between images; height of a line
DOTS = ":", (0, (4, 1.5, 1, 1.5)), (0, (1, 3))  # styles of the lines of reference values
STYLE = {**plots.STYLE, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "figure.dpi": DPI,
         "axes.formatter.useoffset": False, "text.parse_math": False}  # names of classes may hold a $
style.use(["default", STYLE])  # whatever the user's own settings are
warnings.filterwarnings("ignore", "Glyph .* missing from")  # class names in scripts that the font lacks


class Picture(NamedTuple):
    """A picture of a report."""
    name: str             # of its file, without the ending
    content: bytes        # PNG or GIF
    caption: str          # what it shows, also for readers who cannot see it
    frames: list = ()     # of a GIF, each as a PNG
    discussion: str = ""  # a paragraph below the caption

    @property
    def kind(self):
        """"png" or "gif"."""
        return "gif" if self.content[:3] == b"GIF" else "png"

    @property
    def size(self):
        """(width, height) in px."""
        return Image.open(io.BytesIO(self.content)).size


def picture(signature, claims, name, figure, caption, discussion=""):
    """A Picture of a Figure, or of Figures of one size as a GIF that loops (200 ms a frame, 2 s the last), signed. Its
    discussion begins with what those of the report.Claims say that name it."""
    discussion = " ".join([*(claim.found for claim in claims if claim.figure == name), discussion]).strip()
    if isinstance(figure, Figure):
        return Picture(name, png_bytes(figure, signature), caption, (), discussion)
    frames = [png_bytes(frame, signature) for frame in figure]
    reduced = [np.asarray(Image.open(io.BytesIO(frame)).quantize(256, Image.MAXCOVERAGE, dither=0).convert("RGB"))
               for frame in frames]  # this method keeps the rare colours of a few points and of the legend
    gif = imageio.imwrite("<bytes>", reduced, extension=".gif", plugin="pillow", loop=0, optimize=False,
                          duration=[200] * (len(frames) - 1) + [2000] if len(frames) > 1 else 2000)
    return Picture(name, gif, caption, frames, discussion)


def png_bytes(figure, signature=""):
    """PNG of a Figure; the signature stands above it at the right."""
    data, (width, height) = FigureCanvasAgg(figure).print_to_buffer()
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, 4)[..., :3]
    if signature:
        text = fitted(signature, width - 2 * MARGIN, 99, 6)
        line = Figure((width / DPI, LINE * (text.count("\n") + 1) / DPI))
        line.text(width - MARGIN, 2, text, transform=None, ha="right", va="bottom", fontsize=6, color="#555555")
        pixels = np.concatenate([imageio.imread(png_bytes(line)), pixels])
    return imageio.imwrite("<bytes>", pixels, extension=".png")


def text_width(text, size=8):
    """Width of a line of text in px, with a little to spare."""
    font = font_manager.FontProperties(size=size)
    return int(textpath.text_to_path.get_text_width_height_descent(text, font, False)[0] * DPI / 70) + 1


def fitted(text, width, lines=3, size=8):
    """The text in at most so many lines of `width` px, broken after words if possible; "…" is what is left out."""
    text, made = " ".join(text.split()), []
    while text and len(made) < lines:
        end = "…" * (len(made) == lines - 1 and text_width(text, size) > width)
        cut = next((n for n in range(len(text), 1, -1) if text_width(text[:n] + end, size) <= width), 1)
        if cut < len(text) and not end:
            cut = 1 + max(text.rfind(" ", 1, cut + 1), *(text.rfind(hyphen, 1, cut) for hyphen in "-_")) or cut
        made, text = [*made, text[:cut].rstrip() + end], text[cut:].lstrip()
    return "\n".join(made)


def tiled(images, columns, k=1, gap=GAP):
    """Images in rows of `columns`, `gap` white px between them, k x k px for each of theirs: uint8 (H', W', 3)."""
    images = images.float().nan_to_num().clamp(0, 1).mul(255).round().byte()
    tiles = make_grid(images.repeat_interleave(k, 2).repeat_interleave(k, 3), columns, gap, pad_value=255)
    return (tiles[:, gap:-gap, gap:-gap] if len(images) > 1 else tiles).permute(1, 2, 0).numpy()


def _scale(images, columns, room):
    """The largest whole number of px a pixel, at least 1, with which so many columns of images fit into the room."""
    return max(1, min((room + GAP) // columns - GAP, PAGE // 5) // max(images.shape[2:]))


def _blocks(blocks, per_row, room=0, title="", labels=(), left=0, below=0, lines=0):
    """A Figure of blocks (title, image (H, W, 3)), `room` px wide at most for a title of always so many `lines`,
    with labels (text, px from the top) at the left and `below` px below all; and their corners (x, y) in px."""
    left = MARGIN + max([left, *(text_width(label) + MARGIN for label, _ in labels)])
    step = SPACE + max(max(image.shape[1], min(room, text_width(name))) for name, image in blocks)
    names = [fitted(name, step - SPACE, lines or 3) for name, _ in blocks]
    head = any(names) * (4 + LINE * max(lines, *(1 + name.count("\n") for name in names)))
    top, down = MARGIN + (LINE + 8) * bool(title), head + max(len(image) for _, image in blocks) + SPACE
    width = max(left + min(per_row, len(blocks)) * step - SPACE + MARGIN, 440 * bool(title))
    height, places = top + -(-len(blocks) // per_row) * down - SPACE + MARGIN + below, []
    figure = Figure((width / DPI, height / DPI))
    figure.text(width / 2, height - MARGIN, fitted(title, width - 2 * MARGIN, 1), transform=None, ha="center", va="top")
    for i, (name, (_, image)) in enumerate(zip(names, blocks)):
        x, y = left + i % per_row * step, height - top - i // per_row * down - head
        places.append((x + (step - SPACE - image.shape[1]) // 2 * bool(name), y - len(image)))
        figure.figimage(image, *places[-1], origin="upper", zorder=-1)
        figure.text(x + (step - SPACE) / 2, y + 3, name, transform=None, ha="center", va="bottom")
        for label, down_to in labels if x == left else ():
            figure.text(x - MARGIN, y - down_to, label, transform=None, ha="right", va="center")
    return figure, places


def grid_figure(groups, columns=8, per_row=None, title=""):
    """Groups {title: images}, each a grid of so many columns, side by side or `per_row` in a row."""
    per_row, columns = per_row or len(groups), min(columns, max(map(len, groups.values())))
    room = (PAGE - 2 * MARGIN - SPACE * (per_row - 1)) // max(per_row, 2 if columns < 16 else 1)
    k = _scale(next(iter(groups.values())), columns, room)
    return _blocks([(name, tiled(images, columns, k)) for name, images in groups.items()], per_row, room, title)[0]


def rows_figure(rows, columns=None):
    """Rows {name: images} one below the other in blocks of so many columns, by default of what the page holds."""
    first, room = next(iter(rows.values())), PAGE - 3 * MARGIN - max(map(text_width, rows))
    blocks = -(-len(first) // (columns or max(1, (room + GAP) // (first.shape[3] + GAP))))
    columns = columns or -(-len(first) // blocks)
    parts = [torch.cat([images[i:i + columns] for images in rows.values()]) for i in range(0, len(first), columns)]
    k = _scale(first, columns, room)
    return _blocks([("", tiled(part, len(part) // len(rows), k)) for part in parts], 1, labels=[
        (name, (i + 0.5) * (first.shape[2] * k + GAP)) for i, name in enumerate(rows)])[0]


def _legend(names, width, handle):
    """Names, columns and rows of a legend of so many px; each handle with the gaps around it is `handle` px wide."""
    names = [fitted(name, width - 2 * MARGIN - handle, 1, 7) for name in names]
    rows = -(-len(names) // max(1, (width - 2 * MARGIN) // (handle + max(text_width(name, 7) for name in names))))
    return [" " + name if name[:1] == "_" else name for name in names], -(-len(names) // rows), rows  # "_": left out


def curves_figure(panels, unit="", x_label="epoch", reference=None, log=()):
    """Panels {title: {label: values by epoch, or (x, y)}} side by side; "held-out ..." is dashed, in the colour of
    "training ...". `unit` labels the vertical axes, by title if a dict; `reference` {title: {label: value}} are dotted;
    titles in `log` have logarithmic axes. Of more than 5 epochs the first fifth may lie outside, as the panel says."""
    width, lines, colours, dots = PAGE if len(panels) > 1 else 640, {}, {}, {}
    figure = Figure(layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for label, values in curves.items():
            x, y = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
            kind, rest = re.match("(held-out|training)?[ ,:]*(.*)", label).groups()
            lines[label], = axes.plot(x, y, "--" if kind == "held-out" else "-", marker="." if len(y) < 16 else "",
                                      color=colours.setdefault(rest, PALETTE[len(colours) % len(PALETTE)]))
        data, marks = [c.get_xydata().T for c in axes.lines if len(c.get_xdata())], (reference or {}).get(title, {})
        for label, value in marks.items():
            lines[label] = axes.axhline(value, linestyle=dots.setdefault(label, DOTS[len(dots) % len(DOTS)]),
                                        color="#666666", linewidth=1.4, zorder=1)
        axes.set(title=fitted(title, width / len(panels) - 80), xlabel=x_label, ylabel=fitted(
            (unit.get(title) if isinstance(unit, dict) else unit) or title, 230))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        if title in log:
            axes.set_yscale("log")
            axes.yaxis.set(major_formatter=ticker.LogFormatter(), minor_formatter=ticker.LogFormatter())
        elif x_label.startswith("epoch") and max([np.ptp(x) for x, _ in data] + [0]) >= 5:
            later = np.concatenate([y[x >= x[0] + 0.2 * np.ptp(x)] for x, y in data] + [list(marks.values())])
            every, later = (values[np.isfinite(values)] for values in (np.concatenate([y for _, y in data]), later))
            if len(later) and np.ptp(every) > 1.5 * np.ptp(later):  # else leaving out the first changes little
                margin = 0.08 * np.ptp(later) or 0.3 * np.ptp(every)
                middle = np.mean(axes.set_ylim(later.min() - margin, later.max() + margin))
                far = every[np.abs(every - middle).argmax()]
                axes.set_xlabel(f"{x_label}\n(first epochs outside, {'up' if far > middle else 'down'} to {far:,.5g})")
    names, columns, rows = _legend(lines, width, 62)
    figure.legend(lines.values(), names, ncols=columns, loc="outside lower center")
    figure.set_size_inches(width / DPI, (320 + 20 * rows) / DPI)
    return figure


def scatter_figure(panels, labels, classes, limit=None, axis=""):
    """Panels {title: points (N, 2)} side by side; without a limit no ticks, and `axis`, as "t-SNE", names the axes."""
    return latent_frame({title: (points, labels, {}) for title, points in panels.items()}, classes, limit, "", axis,
                        PAGE if len(panels) > 1 else 560)


def latent_frame(panels, classes, limit, title="", axis="", width=None):
    """A frame of a GIF: panels {title: (points (N, 2), labels (N,), rows {name: images})} with axes -limit..limit and
    circles of one and two standard deviations of N(0, I), and below as many images as fit, alike in all panels."""
    width, rows = width or (440 if len(panels) == 1 else min(1080, 360 * len(panels))), [*panels.values()][0][2]
    left, pad, foot = (14, 12, 24) if axis else (0, 0, 0) if limit is None else (44, 5, 50)  # px for text at the axes
    left = max([left, *(text_width(name) + MARGIN for name in rows)])
    side = (width - 2 * MARGIN - left + SPACE) // len(panels) - SPACE - 2 * pad
    first = next(iter(rows.values()), torch.empty(0, 1, 1, 1))
    count = max(1, min(len(first), (side + GAP) // (first.shape[3] + GAP)))
    k = _scale(first, count, side)
    gap = max(GAP, (side - count * k * first.shape[3]) // max(1, count - 1))
    strips = [tiled(torch.cat([images[:count] for images in rows.values()]), count, k, gap) if rows else
              np.empty((0, side, 3), np.uint8) for _, _, rows in panels.values()]
    blocks = [(name, np.pad(strip, ((side + foot, 0), (pad, side + pad - strip.shape[1]), (0, 0)), constant_values=255))
              for name, strip in zip(panels, strips)]
    heights = [(name, side + foot + (i + 0.5) * (first.shape[2] * k + gap)) for i, name in enumerate(rows)]
    names, columns, legend = _legend(classes, width, 40)
    figure, places = _blocks(blocks, len(panels), 0, title, heights, left, MARGIN + 20 * legend, 2 * bool(rows))
    for (x, y), (points, labels, _) in zip(places, panels.values()):
        axes = figure.add_axes(np.divide((x + pad, y + len(blocks[0][1]) - side, side, side), (*figure.bbox.size,) * 2))
        handles = [axes.plot(*np.asarray(points)[np.asarray(labels) == i].T, marker, color=colour, alpha=0.7,
                             markersize=2.6, markeredgewidth=0)[0]
                   for i, (colour, marker) in class_styles(range(len(classes))).items()]
        if limit is None:
            axes.set_aspect("equal", "datalim")
            axes.set(xticks=[], yticks=[], xlabel=axis and f"{axis} 1", ylabel=axis and f"{axis} 2")
            continue
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set_xlabel("$z_1$", parse_math=True)
        axes.set_ylabel("" if x > places[0][0] else "$z_2$", parse_math=True)
        axes.tick_params(labelleft=x == places[0][0])
        for radius in (1, 2):
            axes.add_patch(patches.Circle((0, 0), radius, fill=False, color="#888888", linewidth=0.9, zorder=3))
    figure.legend(handles, names, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, MARGIN / figure.bbox.height),
                  borderaxespad=0, borderpad=0, markerscale=1.8, handletextpad=0.1, columnspacing=1.0)
    return figure
