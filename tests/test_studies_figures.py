"""studies/figures.py and studies/report.html: colours, pixels, axes, legends, GIFs, and the page in a browser."""
import io
import json
import re
import time

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from pages import images_of, read_page
from PIL import Image

from common import plots
from studies import figures, report
from studies.report import Claim

LONG = [f"Grallaria_cucullata-{i} of the Andes, a male" for i in range(20)]  # 40 letters and more
POINTS = np.random.default_rng(0).normal(size=(60, 2))
MACHADO = {  # Machado, Oliveira & Fernandes 2009, severity 1, for linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])


def pixels(figure, signature=""):
    """The figure's PNG as an array (H, W, 3)."""
    return imageio.imread(figures.png_bytes(figure, signature))


def drawn(n, channels=1, side=8, seed=0):
    """n random images of few grey levels, none of them white."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 6, (n, channels, side, side)) / 10.0).float()


def find(image, page, k):
    """Corners (x, y) from the top left where the page shows the image (C, H, W) with k x k px for each of its own."""
    block = (image * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3).numpy().repeat(k, 0).repeat(k, 1)
    (height, width), first = block.shape[:2], re.compile(re.escape(block[0].tobytes()))
    starts = ((match.start() // 3, y) for y, row in enumerate(page) for match in first.finditer(row.tobytes()))
    return [(x, y) for x, y in starts if np.array_equal(page[y:y + height, x:x + width], block)]


def extents(figure):
    """[(text, bounding box in px)] of all texts of a figure that was drawn, those of the axes and legends too."""
    figures.png_bytes(figure)
    axes_texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())  # there are ticks beyond, which are not drawn
        axes_texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    return [(text.get_text(), text.get_window_extent()) for text in [*figure.texts, *axes_texts, *legends]
            if text.get_text().strip() and text.get_visible()]


def legend_names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_no_text_is_cut_or_covered(figure):
    """All texts lie within the figure, and no two overlap by more than a pixel."""
    found = extents(figure)
    width, height = figure.bbox.size
    for i, (text, box) in enumerate(found):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (text, box)
        for other, another in found[:i]:
            wide = min(box.x1, another.x1) - max(box.x0, another.x0)
            assert min(wide, min(box.y1, another.y1) - max(box.y0, another.y0)) <= 1, (text, other)


def test_ten_colours_are_told_apart_by_the_colour_blind_too():
    rgb = np.array([[int(colour[i:i + 2], 16) for i in (1, 3, 5)] for colour in plots.PALETTE]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    assert len(rgb) == 10 and (1.05 / (linear @ TO_XYZ[1] + 0.05)).min() > 2  # contrast with white, as WCAG has it
    for sight, matrix in MACHADO.items():
        xyz = (linear @ np.transpose(matrix)).clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
        root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], 1)
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(10)
        assert distance.min() > (25 if sight == "normal" else 17), sight
    assert len(set(plots.MARKERS)) == len(plots.PALETTE) == 10  # so that a marker and a colour tell 100 classes


def test_images_are_drawn_in_whole_multiples_of_their_pixels():
    images = drawn(70, 1, 28)
    for figure, k, n in (
            (figures.grid_figure({"a": images[:64], "b": images[64:]}, title="t"), 2, 70),
            (figures.grid_figure({str(i): images[i:i + 1] for i in range(7)}, 1, 5), 7, 7),
            (figures.grid_figure({"a": images[:64]}, 16), 2, 64),
            (figures.grid_figure({"a": images[:9]}, 9), 2, 9),
            (figures.rows_figure({"original": images[:12], "reconstruction": images[12:24]}), 2, 24),
            (figures.rows_figure({"original": images[:7], "reconstruction": images[7:14]}, 4), 7, 14),
            (figures.latent_frame({"β = 1": (np.eye(2), [0, 1], {"original": images[:9], "AE": images[9:18]})},
                                  ["a", "b"], 4), 1, 18)):
        page = pixels(figure)
        assert page.shape[1] <= figures.PAGE and page.shape[1] == round(figure.bbox.width)
        assert all(len(find(image, page, k)) == 1 for image in images[:n:3]), (k, n)
    tiles = figures.tiled(images[:5], 3, 4)
    assert tiles.shape == (2 * 4 * 28 + figures.GAP, 3 * 4 * 28 + 2 * figures.GAP, 3) and tiles.dtype == np.uint8
    assert (tiles[112:114] == 255).all() and (tiles[114:, 228:] == 255).all()
    assert find(images[4], tiles, 4) == [(114, 114)]
    assert (figures.tiled(torch.tensor([[[[float("nan"), -1.0, 2.0]]]]), 1)[0, :, 0] == [0, 0, 255]).all()
    photos = drawn(20, 3, 200)  # too large: they stay as they are, as many as the page holds if that is left open
    page = pixels(figures.grid_figure({"a": photos[:8]}, 8))
    assert len(find(photos[7], page, 1)) == 1 and page.shape[1] > figures.PAGE
    page = pixels(figures.rows_figure({"photo": photos[:10], "AE": photos[10:]}))
    assert page.shape[1] <= figures.PAGE and len(find(photos[19], page, 1)) == 1


def test_a_reconstruction_is_below_its_original_in_each_block():
    images = drawn(21, 1, 8)
    page = pixels(figures.rows_figure({"original": images[:7], "AE": images[7:14], "VAE": images[14:]}, 3))
    k = next(k for k in range(30, 0, -1) if find(images[0], page, k))
    places = np.array([find(image, page, k)[0] for image in images]).reshape(3, 7, 2)
    assert (places[:, :, 0] == places[0, :, 0]).all()
    assert (np.diff(places[:, :, 1], axis=0) == 8 * k + figures.GAP).all()
    assert len(set(places[0, ::3, 0])) == 1 and places[0, 3, 1] > places[2, 0, 1] + 8 * k


def test_groups_are_laid_out_in_lines_below_their_titles():
    figure = figures.grid_figure({letter: drawn(3, seed=i) for i, letter in enumerate("abcdefg")}, 3, 5)
    page, titles = pixels(figure), dict(extents(figure))
    assert [*titles] == [*"abcdefg"]
    k = next(k for k in range(30, 0, -1) if find(drawn(3)[0], page, k))
    for i, box in enumerate(titles.values()):
        x, y = find(drawn(3, seed=i)[0], page, k)[0]
        assert 0 < y - (int(figure.bbox.height) - box.y0) < 8 and x < box.x0 < x + 3 * 8 * k
    assert titles["a"].y0 == pytest.approx(titles["e"].y0, abs=4)
    assert titles["a"].x0 == pytest.approx(titles["f"].x0, abs=4)


def test_long_names_neither_overlap_nor_are_cut_off():
    images = drawn(20, 3, 28)
    rows = figures.rows_figure({"original": images, LONG[0] * 2: images})
    assert LONG[0] * 2 in [text for text, _ in extents(rows)]
    for figure in (
            rows, figures.grid_figure({LONG[0] * 5: images[:1]}, 1, 5, LONG[1] * 5),
            *(figures.grid_figure({name: images[i:i + 1] for i, name in enumerate(LONG)}, 1, per_row, "First images")
              for per_row in (5, 10, 20)),
            *(figures.curves_figure({name: {f"{kind} {LONG[i]}": [2.0, 1 + i] for i in range(4) for kind in (
                "training", "held-out")} for name in LONG[:panels]}, LONG[0] * 2) for panels in (1, 2, 4))):
        assert_no_text_is_cut_or_covered(figure)


def test_texts_are_broken_after_words_and_shortened_with_an_ellipsis():
    width = figures.text_width("held-out images")
    assert figures.fitted("held-out images", width) == "held-out images"
    assert figures.fitted("held-out images", width - 8) == "held-out\nimages"
    assert figures.fitted("held-out images", figures.text_width("held-out") - 3) == "held-\nout\nimages"
    assert figures.fitted("held-out images", width - 8, 1)[-1] == "…" and figures.fitted("", 9) == ""
    for text in (LONG[0], "m" * 40, "a b", "_a"):
        for width in (40, 90, 200):
            lines = figures.fitted(text, width, 3).split("\n")
            assert len(lines) <= 3 and all(figures.text_width(line) <= width for line in lines)
            assert "…" in lines[-1] or "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_signature_takes_lines_of_its_own_above():
    images = drawn(12)
    for make in (lambda: figures.scatter_figure({"z": np.eye(2)}, [0, 1], ["a", "b"]),
                 lambda: figures.rows_figure({"original": images, "AE": images}),
                 lambda: figures.grid_figure({"a": images, "b": images}, 4),
                 lambda: figures.curves_figure({"loss": {"training": [3.0, 2], "held-out": [3.0, 2.5]}}, "nats")):
        plain, signed, longer = (pixels(make(), text) for text in ("", "by hand", "by hand " * 25))
        assert len(signed) - len(plain) == figures.LINE and (signed[figures.LINE:] == plain).all()
        above = np.flatnonzero((signed[:figures.LINE] < 250).any((0, 2)))
        assert above.min() > signed.shape[1] / 2 and signed.shape[1] - 15 < above.max() < signed.shape[1] - 5
        assert (len(longer) - len(plain)) % figures.LINE == 0 and (longer[-len(plain):] == plain).all()
        assert figures.png_bytes(make()) == figures.png_bytes(make())


def test_held_out_curves_are_dashed_in_the_colour_of_training():
    figure = figures.curves_figure({
        "loss": {"training AE": [3.0, 2], "held-out AE": [3.0, 2], "training": [1.0, 1], "held-out": [2.0, 1]},
        "KL": {"training VAE": [2.0, 1], "AE": [1.0, 2], "hold": ([5, 7], [1.0, 2])}}, {"loss": "nats", "KL": "bits"})
    loss, kl = figure.axes
    assert [line.get_linestyle() for line in loss.lines] == ["-", "--", "-", "--"]
    colours = [line.get_color() for line in [*loss.lines, *kl.lines]]
    assert colours == [plots.PALETTE[i] for i in (0, 0, 1, 1, 2, 0, 3)]
    assert (loss.get_ylabel(), kl.get_ylabel()) == ("nats", "bits")
    assert kl.lines[2].get_xdata().tolist() == [5, 7] and [*loss.lines[0].get_xdata()] == [1, 2]
    assert legend_names(figure) == ["training AE", "held-out AE", "training", "held-out", "training VAE", "AE", "hold"]
    for unit in ("", {"loss": "nats"}):
        panels = figures.curves_figure({"loss": {"a": [1.0]}, "KL": {"a": [2.0]}}, unit).axes
        assert all(axes.get_ylabel() for axes in panels)


def test_the_first_epochs_do_not_flatten_the_curves_and_are_mentioned():
    later = [110 - i / 4 for i in range(20)]
    for first, said in (([], None), ([110.5], None), ([500.0], "up to 500"), ([300, 200.0, 130], "up to 300"),
                        ([4.5], "down to 4.5")):
        loss, = figures.curves_figure({"loss": {"training AE": first + later, "held-out AE": [*first, *later]}}).axes
        low, high = loss.get_ylim()
        assert low < later[-1] and later[3] < high < 114 and (
            high > max(first + later) if said is None else high - low < 7), first
        assert loss.get_xlabel() == ("epoch" if said is None else f"epoch\n(first epochs outside, {said})")
    same = {"loss": {"training": [900.0, *later], "held-out": later}}
    for figure in (figures.curves_figure(same, x_label="samples k"), figures.curves_figure(same, log=("loss",)),
                   figures.curves_figure({"loss": {"training": [900.0, 3, 2, 1]}})):
        assert "\n" not in figure.axes[0].get_xlabel() and figure.axes[0].get_ylim()[1] >= 900


def test_a_reference_is_a_dotted_grey_line_of_one_style_everywhere():
    curve = {"described": [99.0, *(10.0 - i / 10 for i in range(20))]}
    figure = figures.curves_figure(dict.fromkeys(("FID", "recall", "precision"), curve), reference={
        "FID": {"training images": 2.0}, "recall": {"held-out images": 7.5, "training images": 3.0}})
    (_, fid), (_, held, train), (_,) = (axes.lines for axes in figure.axes)
    assert fid.get_color() == train.get_color() == held.get_color() == "#666666"
    assert fid.get_linestyle() == train.get_linestyle() == ":" and [*fid.get_ydata()] == [2, 2]
    assert held._dash_pattern != fid._dash_pattern == train._dash_pattern
    assert figure.axes[0].get_ylim()[0] < 2 and figure.axes[1].get_ylim()[0] < 3 < 11 > figure.axes[0].get_ylim()[1]
    assert legend_names(figure) == ["described", "training images", "held-out images"]


@pytest.mark.filterwarnings("error")
def test_single_constant_and_incomplete_curves_are_drawn():
    nan = float("nan")
    figure = figures.curves_figure({
        "one": {"training": [3.0], "held-out": [3.0]}, "constant": {"training": [0.0] * 9, "held-out": [5.0] * 9},
        "gaps": {"training": [None, 2.0, nan, 1.0, float("inf")], "held-out": [None, None]},
        "late": {"training": [7.0] + [5.0] * 9, "none": []}, "wide": {"FID": [5000.0, 90, None, 3, 4, 5, 6]}},
        log=("wide",), reference={"wide": {"real": 1.5}})
    assert_no_text_is_cut_or_covered(figure)
    one, _, gaps, late, wide = figure.axes
    assert [text.get_text() for text in one.get_xticklabels() if 0.9 < text.get_position()[0] < 1.1] == ["1"]
    assert np.isfinite(gaps.lines[0].get_xydata()[:, 1]).tolist() == [False, True, False, True, False]
    assert np.isfinite(gaps.get_ylim()).all() and gaps.get_ylim()[1] < 3
    assert late.get_ylim()[0] < 5 < late.get_ylim()[1] < 7 and "up to 7)" in late.get_xlabel()
    assert wide.get_yscale() == "log" and wide.get_ylim()[0] < 1.5
    assert "1000" in [text.get_text() for text in wide.get_yticklabels()]


@pytest.mark.filterwarnings("error")
def test_names_of_classes_and_signatures_are_drawn_as_they_are():
    names, points = ["_a", "$b_^$", ""], np.eye(3)[:, :2]
    frame = figures.latent_frame({"$t$": (points, range(3), {"$a$": drawn(2)})}, names, 1, "$x$")
    for figure in (figures.scatter_figure({"z": points}, range(3), names), frame):
        assert [name.strip() for name in legend_names(figure)] == names
        figures.png_bytes(figure, "$x_^$")


def test_latents_share_their_axes_and_circles_and_tsne_has_no_ticks():
    panels, labels = {"β = 0.1": POINTS, "β = 1": torch.from_numpy(POINTS) / 2}, np.repeat(range(3), 20)
    figure = figures.scatter_figure(panels, torch.from_numpy(labels), ["a", "b", "c"], 3.5)
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim() == (-3.5, 3.5) and axes.get_xlabel() == "$z_1$"
        assert [patch.radius for patch in axes.patches] == [1, 2] and len(axes.get_xticks()) > 3
        assert [(line.get_color(), line.get_marker()) for line in axes.lines] == [
            *zip(plots.PALETTE[:3], plots.MARKERS)]
    assert np.ptp([axes.get_window_extent().size for axes in figure.axes]) < 0.1
    assert [axes.get_ylabel() for axes in figure.axes] == ["$z_2$", ""] and figure.axes[1].get_title() == ""
    assert (figure.axes[0].lines[1].get_xydata() == POINTS[20:40]).all()
    for axis, wanted in (("", ("", "")), ("x", ("x 1", "x 2"))):
        figure = figures.scatter_figure(panels, labels, "abc", axis=axis)
        assert all((axes.get_xlabel(), axes.get_ylabel()) == wanted for axes in figure.axes)
        assert not any(len(axes.get_xticks()) + len(axes.get_yticks()) + len(axes.patches) for axes in figure.axes)


@pytest.mark.parametrize("names", ([LONG[0]], ["a", "b"], LONG))
def test_scatter_plots_have_room_for_their_legend(names):
    labels, rows = np.arange(60) % len(names), {"original": drawn(5), LONG[0]: drawn(5)}
    for figure in (*(figures.scatter_figure(dict.fromkeys(titles, POINTS), labels, names, limit, "t-SNE" * (not limit))
                     for titles in (LONG[:1], LONG[:2], ["a", "b", "c"]) for limit in (None, 9)),
                   *(figures.latent_frame(dict.fromkeys(LONG[:n], (POINTS, labels, rows)), names, 4, "epoch 1")
                     for n in (1, 2, 3))):
        assert_no_text_is_cut_or_covered(figure)
        legend = figure.legends[0].get_window_extent()
        assert 0 <= legend.x0 and legend.x1 <= figure.bbox.width and legend.y0 >= 0
        assert legend.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)
        assert legend.y1 <= min(image.get_extent()[2] for image in figure.images) + 1


def test_frames_have_one_size_and_show_the_rows_under_their_panels():
    digits, photos, labels, classes = drawn(40, 1, 28), drawn(12, 3, 64), np.arange(60) % 10, [*"0123456789"]
    for n, width in ((1, 440), (2, 720), (3, 1080)):
        frames = [figures.latent_frame({f"β = {i}, epoch {step}, batch {10 ** step:,}": (POINTS * step, labels, {
            "original": digits[:9], "reconstruction": digits[9 + 9 * i:18 + 9 * i]}) for i in range(n)},
            classes, 4, f"step {step}, {10 ** step:,} images" * min(step, 3)) for step in (1, 8, 21)]
        pages = [pixels(frame) for frame in frames]
        assert len({page.shape for page in pages}) == 1 and abs(pages[0].shape[1] - width) < 4
        above = [x for x, _ in find(digits[0], pages[0], 1)]
        for i, axes in enumerate(frames[0].axes):
            (x, y), = find(digits[9 + 9 * i], pages[0], 1)
            box = axes.get_window_extent()
            assert x == above[i] == pytest.approx(box.x0, abs=1) and y > len(pages[0]) - box.y0
            assert find(digits[17 + 9 * i], pages[0], 1)[0][0] + 28 <= box.x1 + 1
    frame = pixels(figures.latent_frame({name: (POINTS, labels, {"original": photos[:6], "AE": photos[6:]})
                                         for name in "abc"}, classes, 4))
    assert find(photos[0], frame, 1) and not find(photos[5], frame, 1)  # four fit under a panel


def test_a_gif_has_its_frames_and_durations():
    def frames():
        return (figures.latent_frame({"": (np.eye(3)[:, :2] * n, range(3), {"original": drawn(5), "AE": drawn(5)})},
                                     ["a", "b", "c"], 4, f"epoch {n}") for n in (1, 2, 3))

    for signature in ("", "by hand"):
        made = figures.picture(signature, [], "moving", frames(), "caption", "discussion")
        with Image.open(io.BytesIO(made.content)) as gif:
            shown = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
            assert shown == [200, 200, 2000] and gif.info["loop"] == 0 and gif.size == made.size
        assert made.kind == "gif" and made.discussion == "discussion" and made.size[0] == 440
        assert [*made.frames] == [figures.png_bytes(frame, signature) for frame in frames()]
        first = imageio.imread(made.content, index=0).astype(int)
        assert abs(first - imageio.imread(made.frames[0])).mean() < 1  # 256 colours
    claims = [Claim("published", f"It {verb}.", True, name) for verb, name in (
        ("falls", "still"), ("rises", "moving"), ("ends", "still"))]
    still = figures.picture("", claims, "still", next(frames()), "caption")
    assert still.kind == "png" and len(still.frames) == 0 and still.discussion == "It falls. It ends."
    assert figures.picture("", claims, "moving", next(frames()), "", "More.").discussion == "It rises. More."
    assert figures.picture("", [], "one", [next(frames())], "caption").kind == "gif"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of a report of all that one can hold, with wide tables, long words and letters that HTML knows."""
    folder, image = tmp_path_factory.mktemp("report") / "new", drawn(4, 3)
    pictures = [
        figures.picture("by <hand>", [], "rows", figures.rows_figure({"original": image}),
                        'four "images" <here> & more', "what <follows>"),
        figures.picture("", [], "wide", figures.curves_figure({"a": {"x": [1.0]}, "b": {"x": [2.0]}}), "wide"),
        figures.picture("", [], "moving", [figures.grid_figure({"a": image[:2]})] * 2, "a GIF")]
    results = {"quick": True, "seeds": [0], "device": "cpu", "threads": 1, "precision": "32-true",
               "command": "word" * 60, "settings": {"widths": [128, 64], "lr": 1e-3}, "versions": {"python": "3"},
               "data": {"source": ["a<b.npz"], "train": 48_000, "held_out": 12, "held_out_by": "its own",
                        "classes": ["a"] * 99, "skipped": 2}}
    tables = [
        report.Table("<numbers>", ["what", *["a long heading"] * 9], [["a<b", *range(9)], ["c" * 99, *"-" * 9]]),
        report.Table("usual " * 30, ["", *["VAE, described"] * 7], [["loss, nats an image", *["162.01 ± 0.25"] * 7]]),
        report.Table("words", ["published", "found", "agrees"], [["It falls.", "falls: 1, 2, 3", "yes"]]),
        report.Table("empty", ["", "a"], [])]
    sections = [report.Section("One", ["text"], tables, pictures)]
    said = report.write_study(folder, "A <title>", "12 images", sections, results, time.monotonic() - 60)
    assert said.endswith("3 figures; 2 images skipped")
    return folder


def test_a_report_is_whole_and_escapes_what_it_is_given(page):
    text, tags = read_page(page / "report.html")
    names, images = [tag for tag, _ in tags], images_of(tags)
    assert sorted(str(path.relative_to(page)) for path in page.rglob("*.*")) == [
        "figures/moving.gif", "figures/rows.png", "figures/wide.png", "report.html", "results.json"]
    assert [(image["alt"], image["src"][:15]) for image in images] == [
        ('four "images" <here> & more', "data:image/png;"), ("wide", "data:image/png;"), ("a GIF", "data:image/gif;")]
    assert all(image.get("class") == ("wide" if int(image["width"]) > 480 else None) for image in images)
    assert "script" not in names and "http" not in text.replace("http-equiv", "")
    for tag in ("html", "head", "body", "header", "main", "section", "figure", "table", "tr", "td", "th", "p", "div"):
        assert names.count(tag) == text.count(f"</{tag}>") > 0, tag
    assert names.count("h1") == 1 and tags[names.index("html")][1]["lang"] == "en"
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert text.count("<p>what &lt;follows&gt;</p>") == 1 and "<p></p>" not in text
    for shown in ("12 images, the quick version of the study.", "&lt;here&gt; &amp; more", "48000",
                  "A &lt;title&gt;</h1>", '<td class="text">yes</td>', "<td>162.01 ± 0.25</td>",
                  '<th scope="col" class="text">agrees</th>', '<th scope="col">VAE, described</th>'):
        assert shown in text, shown
    assert json.loads((page / "results.json").read_text())["seconds"] >= 60


@pytest.mark.parametrize("scheme", ("light", "dark"))
@pytest.mark.parametrize("width", (400, 1200))
def test_a_report_opens_in_a_browser_and_is_not_wider_than_it(page, browser, scheme, width):
    tab, requests, troubles = browser.new_page(color_scheme=scheme), [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: troubles.append(message.text))
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto((page / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    shown = tab.evaluate("[...document.images].map(image => [image.width, image.naturalWidth])")
    fits = tab.evaluate("[...document.querySelectorAll('.box')].map(e => e.scrollWidth <= e.clientWidth)")
    if width == 1200:  # images at natural size; only the table with a word of 99 letters may scroll
        assert all(one == natural for one, natural in shown) and not fits[0] and all(fits[1:])
    else:  # wide figures scroll, at a size that can be read, narrow ones fit
        assert fits[4:7] == [wide <= 480 for _, wide in shown] and {*fits[4:7]} == {False, True}
        assert all(one >= 0.75 * wide for one, wide in shown)
    white = tab.evaluate("getComputedStyle(document.querySelector('figure .box')).backgroundColor")
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert white == "rgb(255, 255, 255)" and (max(eval(paper[3:])) < 40) is (scheme == "dark")
    assert [url for url in requests if not url.startswith("data:")] == [(page / "report.html").as_uri()]
    assert troubles == []
