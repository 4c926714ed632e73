"""Lays out the report of each part, a PDF of at most 3 pages, from the figures and the numbers beside them.

Every number in the text is read from FIGURES/numbers.json, FIGURES/ablation.json or the scripts; the first line of the
report is the entry numbers of group.txt. The report lands in REPORT/PART/ENTRIES.pdf.
"""
import io
import json
import math
from pathlib import Path
from xml.sax.saxutils import escape

from common.errors import InputError, bad_input_of
from handin import forms

EXAMPLE = "python -m handin report both --figures figures --group group.txt --out report"
PARTS = ("birds", "digits")
MAKERS = {"birds": "python -m handin figures birds TEST --model bird.pth",
          "digits": "python -m handin figures digits VAL TEST --train TRAIN --model vae.pth --mixture gmm_params.pkl",
          "ablation": "python -m handin ablate TRAIN"}
FIGURES = {  # in the order of their numbers
    "birds": ("birds_architecture", "birds_learning_curves", "birds_confusion", "birds_gradcam"),
    "digits": ("digits_ssim", "digits_reconstructions", "digits_manifold", "digits_latents", "digits_mixture")}

NUMBER = (int, float)
SCORES = dict.fromkeys(("average_f1", "macro_f1", "accuracy", "macro_precision", "macro_recall"), NUMBER)
FORMS = {  # what the files must hold: types, a list of one form, or a dict of forms
    "birds": {**SCORES, "photos": int, "parameters": int, "classes": [str], "epochs": int, "chosen_epoch": int,
              "minutes": NUMBER, "device": str, "train_photos": int, "validation_photos": int,
              "validation_f1": NUMBER, "image_size": int,
              "per_class": [{"class": str, "precision": NUMBER, "recall": NUMBER, "f1": NUMBER, "photos": int}],
              "settings": {"class_weights": bool, "mirror": bool, **dict.fromkeys((
                  "epochs", "batch", "learning_rate", "warmup", "weight_decay", "dropout", "label_smoothing", "mixup",
                  "cutmix", "average", "area", "aspect", "rotate", "colour", "tint", "held_out", "seed"), NUMBER)}},
    "digits": {"images": int, "ssim": NUMBER, "ssim_sd": NUMBER, "ssim_from_mean": NUMBER, "one_minus_mse": NUMBER,
               "inside_grid": NUMBER, "aggregate_mean": [NUMBER], "aggregate_covariance": [[NUMBER]],
               "scatter_of": str, "scatter_images": int, "parameters": int, "classes": [(int, str)],
               "mixture_weights": [NUMBER], "mixture_separation": NUMBER, "labelled_images": int},
    "ablation": {"epochs": int, "image_size": int, "photos": int,
                 "rows": [{"variant": str, "f1": [NUMBER], "f1_mean": NUMBER, "f1_sd": (int, float, type(None)),
                           "minutes_mean": NUMBER}]}}

MM = 72 / 25.4                 # points
PAGE = (210 * MM, 297 * MM)    # A4
MARGIN, GAP = 16 * MM, 6 * MM  # a column is 86 mm wide
FIGURE_DPI = 200               # of the PNG files: their size in print
SHRINK = (1.0, 0.95, 0.9)      # sizes of the figures to choose from for the fullest pages
MORE_SHRINK = (0.85, 0.8, 0.75, 0.7)  # where the pages would be too many; with less, figures are unreadable
PHOTOGRAPHIC = 10 ** 6         # bytes of a PNG above which it is embedded as JPEG
FONTS = {"STIX": "STIXGeneral.ttf", "STIX-Bold": "STIXGeneralBol.ttf", "DejaVu": "DejaVuSans.ttf"}  # matplotlib's own
LISTED = 12                    # classes that a sentence or a table names


# ---------------------------------------------------------------------------------------------------------------- input

def fits(value, form):
    """Whether a value read from JSON has the form: a type or several, [form] for a list that is not empty, {key: form}
    for a dict that may hold more. A bool is no number, and a number is finite."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], form[key]) for key in form)
    if isinstance(form, list):
        return isinstance(value, list) and bool(value) and all(fits(item, form[0]) for item in value)
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, form) and (not isinstance(value, float) or math.isfinite(value))


def read_json(path, maker):
    """Content of a JSON file. Raises InputError that names the command which makes it."""
    content = forms.read_bytes(path, f"the numbers that `{maker}` writes")
    try:
        return json.loads(content.decode())
    except ValueError:
        raise InputError(f"{path}: expected JSON, found something else; `{maker}` writes it anew") from None


def read_numbers(folder, part):
    """The numbers of one part, a dict. Raises InputError."""
    path, maker = Path(folder, "numbers.json"), MAKERS[part]
    numbers = read_json(path, maker)
    if not isinstance(numbers, dict) or part not in numbers:
        raise InputError(f"{path}: expected the numbers of the {part}, found none; `{maker}` writes them")
    numbers = numbers[part]
    for key, form in FORMS[part].items():
        if not isinstance(numbers, dict) or key not in numbers or not fits(numbers[key], form):
            raise InputError(f"{path}: expected {key} of the {part} as `{maker}` writes it, found "
                             + ("another form" if key in numbers else "none"))
    return numbers


def read_ablation(folder):
    """Content of ablation.json, or None where it is not there or has no row yet. Raises InputError."""
    path = Path(folder, "ablation.json")
    if not path.exists():
        return None
    content = read_json(path, MAKERS["ablation"])
    if isinstance(content, dict) and content.get("rows") == []:
        return None
    if not fits(content, FORMS["ablation"]):
        raise InputError(f"{path}: expected what `{MAKERS['ablation']}` writes, found another form")
    return content


def read_figures(folder, part):
    """{name: (bytes that reportlab can embed, width and height in points)}. Raises InputError that names the command
    which draws what is missing."""
    from PIL import Image
    figures = {}
    for name in FIGURES[part]:
        path = Path(folder, name + ".png")
        content = forms.read_bytes(path, f"a figure that `{MAKERS[part]}` draws")
        try:
            with Image.open(io.BytesIO(content)) as image:
                picture = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        except Exception:  # broken bytes trip the decoder in a dozen ways
            raise InputError(f"{path}: expected a PNG, found something else; `{MAKERS[part]}` draws it anew") from None
        buffer = io.BytesIO()
        if len(content) > PHOTOGRAPHIC:
            picture.convert("RGB").save(buffer, "JPEG", quality=92, subsampling=0)
        else:
            picture.convert("RGB").save(buffer, "PNG")
        figures[name] = (buffer.getvalue(), *(side * 72 / FIGURE_DPI for side in picture.size))
    return figures


# -------------------------------------------------------------------------------------------------------------- layout

def register_fonts():
    """Makes FONTS known to reportlab, once. They are embedded, so that every viewer shows every letter alike."""
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    if "DejaVu" not in pdfmetrics.getRegisteredFontNames():
        for name, file in FONTS.items():
            pdfmetrics.registerFont(TTFont(name, str(Path(matplotlib.get_data_path(), "fonts", "ttf", file))))
        pdfmetrics.registerFontFamily("STIX", "STIX", "STIX-Bold", "STIX", "STIX-Bold")
        pdfmetrics.registerFontFamily("DejaVu", "DejaVu", "DejaVu", "DejaVu", "DejaVu")


class Layout:
    """Makes the pieces of a page. `shrink` is the size of the figures over that they were drawn for."""

    def __init__(self, figures, shrink):
        from reportlab.lib.styles import ParagraphStyle
        register_fonts()
        self.figures, self.shrink, self.width = figures, shrink, PAGE[0] - 2 * MARGIN
        self.column, self.height = (self.width - GAP) / 2, PAGE[1] - 2 * MARGIN - 16 * MM  # less a caption
        body = ParagraphStyle("body", fontName="STIX", fontSize=10, leading=12.2, spaceAfter=5, alignment=4,
                              allowWidows=0, allowOrphans=0, splitLongWords=1)
        self.styles = {
            "body": body,
            "entries": ParagraphStyle("entries", body, alignment=0),
            "title": ParagraphStyle("title", body, fontName="STIX-Bold", fontSize=15, leading=17, spaceAfter=6,
                                    alignment=0),
            "heading": ParagraphStyle("heading", body, fontName="STIX-Bold", fontSize=11, leading=13,
                                      spaceBefore=5, spaceAfter=3, alignment=0, keepWithNext=1),
            "caption": ParagraphStyle("caption", body, fontSize=9, leading=10.6, spaceBefore=2, spaceAfter=7,
                                      alignment=0),
            "cell": ParagraphStyle("cell", body, fontSize=9, leading=10.4, spaceAfter=0, alignment=0),
            "number": ParagraphStyle("number", body, fontSize=9, leading=10.4, spaceAfter=0, alignment=2),
            "small": ParagraphStyle("small", body, fontSize=8.5, leading=10, spaceAfter=0)}

    def text(self, text, style="body"):
        """A paragraph of reportlab's markup; what comes from files goes through `plain` first."""
        from reportlab.platypus import Paragraph
        for loose in ("n = ", " %", "Figure ", "Table ", " px"):  # a number and its name stay on one line
            text = text.replace(loose, loose.replace(" ", "\N{NO-BREAK SPACE}"))
        return Paragraph(text, self.styles[style])

    def is_narrow(self, name):
        """Whether a figure was drawn for one column."""
        return self.figures[name][1] < 1.05 * self.column

    def figure(self, name, number, caption):
        """A figure and the caption under it: as large as drawn where that fits into its column or the page."""
        from reportlab.platypus import Image
        content, natural, height = self.figures[name]
        scale = min(1, (self.column if self.is_narrow(name) else self.width) / natural, self.height / height)
        scale = min(scale, self.shrink)
        image = Image(io.BytesIO(content), natural * scale, height * scale, hAlign="CENTER")
        return [image, self.text(f"<b>Figure {number}.</b> {caption}", "caption")]

    def table(self, number, caption, head, rows, widths):
        """A table and the caption above it. The first column is text, the others are numbers; widths in points."""
        from reportlab.platypus import Table
        cells = [[self.text(f"<b>{cell}</b>" if row is head else cell, "number" if column else "cell")
                  for column, cell in enumerate(row)] for row in (head, *rows)]
        rules = [("LINEABOVE", (0, 0), (-1, 0), 0.8, "black"), ("LINEBELOW", (0, 0), (-1, 0), 0.4, "black"),
                 ("LINEBELOW", (0, -1), (-1, -1), 0.8, "black"), ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
                 ("LEFTPADDING", (0, 0), (-1, -1), 3), ("RIGHTPADDING", (0, 0), (-1, -1), 3),
                 ("TOPPADDING", (0, 0), (-1, -1), 0.8), ("BOTTOMPADDING", (0, 0), (-1, -1), 1.8)]
        return [self.text(f"<b>Table {number}.</b> {caption}", "caption"),
                Table(cells, widths, style=rules, spaceAfter=8)]

    @staticmethod
    def whole(pieces):
        """Pieces as one, which no page break parts; not for use within columns."""
        from reportlab.platypus import KeepTogether
        return KeepTogether(pieces)

    def side_by_side(self, left, right):
        """Two lists of pieces in two columns, not broken over pages."""
        from reportlab.platypus import Table
        rules = [("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0),
                 ("RIGHTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 0),
                 ("BOTTOMPADDING", (0, 0), (-1, -1), 0)]
        return Table([[left, "", right]], [self.column, GAP, self.column], style=rules, spaceAfter=5)


    def beside(self, name, left, right):
        """Two lists of pieces in two columns, or one under the other where the figure `name` of the first is wide."""
        return [self.side_by_side(left, right)] if self.is_narrow(name) else [self.whole(left), *right]


def plain(text, most=40):
    """Text of a file as markup, on one line, shortened. Letters that STIX lacks are set in DejaVu Sans."""
    from reportlab.pdfbase import pdfmetrics
    register_fonts()
    known = pdfmetrics.getFont("STIX").face.charToGlyph
    return "".join(escape(letter) if ord(letter) in known else f'<font name="DejaVu">{escape(letter)}</font>'
                   for letter in forms.shorten(str(text), most))


def render(story, entries, title):
    """Bytes of the PDF of a list of pieces, the same for the same pieces, and the height in points that each page left
    empty. Raises reportlab's LayoutError for a piece that is larger than a page."""
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate
    empty = []

    def number_page(canvas, document):
        empty.append(document.frame._y - MARGIN)
        canvas.setFont("STIX", 9)
        canvas.drawCentredString(PAGE[0] / 2, MARGIN / 2, str(document.page))

    buffer = io.BytesIO()
    frame = Frame(MARGIN, MARGIN, PAGE[0] - 2 * MARGIN, PAGE[1] - 2 * MARGIN, 0, 0, 0, 0)
    document = BaseDocTemplate(buffer, pagesize=PAGE, title=title, author=" ".join(entries), invariant=1)
    document.addPageTemplates(PageTemplate(frames=[frame], onPageEnd=number_page))  # after the text: it comes first
    document.build(story)
    return buffer.getvalue(), empty


# ---------------------------------------------------------------------------------------------------------------- text

def listed(names):
    """Names in a sentence, as markup."""
    names = [plain(name) for name in names]
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def wilson(share, n):
    """95 % interval of a share seen in n trials (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def _and(things):
    *first, last = map(str, things)
    return f"{', '.join(first)} and {last}" if first else last


def _signed(value):
    return f"{value:+.4f}".replace("-", "\N{EN DASH}")


def _decimals(value):
    return f"{value:.2f}".replace("-", "\N{EN DASH}")


def _percent(share):
    return f"{100 * share:.3g} %"


def _scores(layout, number, n, caption):
    rows = [["Average F1 = (macro F1 + micro F1) / 2", f"<b>{n['average_f1']:.4f}</b>"],
            ["Macro F1", f"{n['macro_f1']:.4f}"], ["Micro F1 = accuracy", f"{n['accuracy']:.4f}"],
            ["Macro precision", f"{n['macro_precision']:.4f}"], ["Macro recall", f"{n['macro_recall']:.4f}"]]
    return layout.table(number, caption, ["Score", "Value"], rows, [0.78 * layout.column, 0.22 * layout.column])


def _per_class(layout, number, n):
    rows, caption = n["per_class"], f"Scores of each class on the n = {n['photos']:,} test photos."
    if len(rows) > LISTED:
        rows = sorted(rows, key=lambda row: row["f1"])[:LISTED]
        caption = f"The {LISTED} of the {len(n['per_class'])} classes with the lowest F1, n = {n['photos']:,} photos."
    cells = [[plain(row["class"]), *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), f"{row['photos']:,}"]
             for row in rows]
    widths = [layout.column * share for share in (0.40, 0.19, 0.14, 0.12, 0.15)]
    return layout.table(number, caption, ["Class", "Precision", "Recall", "F1", "Photos"], cells, widths)


def _ablation(layout, heading, number, ablation, n):
    """The section "effect of optimisation"; n are the numbers of the submitted network."""
    first = ablation["rows"][0]
    rows = []
    for row in ablation["rows"]:
        spread = "" if row["f1_sd"] is None else f" ± {row['f1_sd']:.4f}"
        rows.append([plain(row["variant"]), f"{row['f1_mean']:.4f}{spread}",
                     "" if row is first else _signed(row["f1_mean"] - first["f1_mean"]), str(len(row["f1"])),
                     f"{row['minutes_mean']:.1f}"])
    n_runs = sum(len(row["f1"]) for row in ablation["rows"])
    several = any(row["f1_sd"] is not None for row in ablation["rows"])
    others = ablation["rows"][1:]
    text = (f"What is each ingredient worth? Table {number} trains the network anew with one change at a time: "
            f"{n_runs} trainings, all of {ablation['epochs']} epochs on crops of {ablation['image_size']} px"
            + (", less than the submitted network had, so that the differences count and not the level. "
               if ablation["epochs"] < n["epochs"] or ablation["image_size"] < n["image_size"] else ". "))
    if others:
        worst = min(others, key=lambda row: row["f1_mean"])
        change = worst["f1_mean"] - first["f1_mean"]
        text += (f"The largest loss, {abs(change):.4f}, is that of \N{LEFT DOUBLE QUOTATION MARK}"
                 f"{plain(worst['variant'])}\N{RIGHT DOUBLE QUOTATION MARK}. " if change < 0 else
                 "None of the changes lowers the score. ")
    text += ("A difference that is not larger than the standard deviations is no evidence." if several else
             "With one training a row, small differences are no evidence.")
    caption = (f"Effect of optimisation: average F1 on n = {ablation['photos']:,} photos that took no part in training"
               + (", mean ± standard deviation over seeds" if several else "") + ".")
    widths = [layout.width * share for share in (0.34, 0.24, 0.16, 0.13, 0.13)]
    head = ["Variant", "Average F1", "Difference", "Trainings", "Minutes each"]
    return [layout.text(heading, "heading"), layout.text(text),
            layout.whole(layout.table(number, caption, head, rows, widths))]


def birds_story(layout, n, entries, ablation=None, ablation_first=False):
    """The pieces of the report on birds from its numbers n and, where there is one, the ablation, as the section before
    that on Grad-CAM or after it."""
    import bird
    s, text, head = n["settings"], layout.text, lambda title: layout.text(title, "heading")
    low, high = wilson(n["accuracy"], n["photos"])
    counts = [row["photos"] for row in n["per_class"]]
    best, worst = (choose(n["per_class"], key=lambda row: row["f1"]) for choose in (max, min))
    channels, depths = (_and(bird.STEM), _and(bird.WIDTHS)), _and(bird.DEPTHS)
    pooling = {"mean": "mean", "amax": "maximum"}
    views = len(bird.TEST_VIEWS)
    scales = _and(f"{scale:g}" for scale in sorted({scale for scale, _ in bird.TEST_VIEWS}))
    story = [
        text(" ".join(entries), "entries"), text("Birds: a convolutional network from scratch", "title"),
        head("1  Task and data"),
        text(f"A photo shows a bird of one of {len(n['classes'])} classes ({listed(n['classes'])}); which one? The "
             f"network starts from random weights. It learned from {n['train_photos']:,} photos; "
             f"{n['validation_photos']:,} others, {_percent(s['held_out'])} of each class, chose the epoch that is "
             f"kept. All scores below are of the n = {n['photos']:,} photos of the test folder, "
             + (f"{min(counts):,} to " if min(counts) < max(counts) else "") + f"{max(counts):,} a class."),
    ]
    network = [
        head("2  The network"),
        text(f"A residual network [1] of {n['parameters']:,} parameters (Figure 1). Two convolutions of stride 2 "
             f"({channels[0]} channels) shrink the photo early, which is what makes many epochs affordable. "
             f"Then come {len(bird.WIDTHS)} stages of {channels[1]} channels, of {depths} blocks; each convolution has "
             f"batch normalisation. The last maps are pooled by their {_and(pooling[p] for p in bird.POOLING)}"
             f": a bird may fill the photo or be a dot in it. Dropout of {s['dropout']:g} and one linear layer give "
             f"the {len(n['classes'])} classes."),
        head("3  Training"),
        text(f"Loss: cross-entropy with label smoothing {s['label_smoothing']:g}"
             + (", each class weighted inversely to its number of photos" if s["class_weights"] else "")
             + f". Optimiser: AdamW, batches of {s['batch']}, learning rate up to {s['learning_rate']:g} after a "
             f"warm-up over {_percent(s['warmup'])} of the steps, then down a cosine; weight decay "
             f"{s['weight_decay']:g}; "
             + (f"the weights that count are a running average with decay {s['average']:g}." if s["average"] else
                "the last weights count.")),
    ]
    story += [
        *layout.beside("birds_architecture", layout.figure(
            "birds_architecture", 1, f"Layers, output shapes and parameters for photos of {n['image_size']} px."),
            network),
        text(f"Augmentation, drawn anew for each photo and epoch: a crop of {_percent(s['area'])} to 100 % of the "
             f"photo, stretched by up to {s['aspect']:g} and scaled to {n['image_size']} px, rotated by up to "
             f"{s['rotate']:g}°" + (", mirrored half of the time" if s["mirror"] else "")
             + f", brightness, contrast and saturation changed by up to {_percent(s['colour'])}, each channel by up "
             f"to {_percent(s['tint'])}; mixup on {_percent(s['mixup'])} and CutMix on {_percent(s['cutmix'])} of the "
             f"batches. Training ran for {n['epochs']} of the {s['epochs']} planned epochs in {n['minutes']:.0f} "
             f"minutes (device: {plain(n['device'])}; seed {s['seed']}). Epoch {n['chosen_epoch']} had the best "
             f"validation F1 and is kept (Figure 2); seen as at test, the {n['validation_photos']:,} validation photos "
             f"give {n['validation_f1']:.4f}. At test, the class probabilities of {views} views are "
             f"averaged: sides of {scales} times {n['image_size']} px, to the nearest multiple of 32, each also "
             "mirrored."),
        layout.whole(layout.figure(
            "birds_learning_curves", 2, "Loss in nats and accuracy against epochs. Training photos are augmented and "
            "mixed, hence harder.")),
        head("4  Results"),
        text(f"The average F1 on the n = {n['photos']:,} test photos is <b>{n['average_f1']:.4f}</b> (Table 1). The "
             f"95 % interval of the accuracy, for this number of photos, is {low:.4f} to {high:.4f} (Wilson). "
             + (f"Class {plain(best['class'])} is recognised best (F1 {best['f1']:.3f}), class {plain(worst['class'])} "
                f"worst ({worst['f1']:.3f}, Table 2). " if worst["f1"] < best["f1"] else "")
             + "Figure 3 shows what is taken for what."),
    ]
    matrix = layout.figure("birds_confusion", 3, "Confusion matrix: numbers are photos, colours shares of the row.")
    scores, by_class = _scores(layout, 1, n, f"Scores on n = {n['photos']:,} test photos."), _per_class(layout, 2, n)
    story += [layout.side_by_side(matrix, scores + by_class)] if layout.is_narrow("birds_confusion") else [
        layout.whole(matrix), layout.side_by_side(scores, by_class)]
    looks = [
        head(f"{6 if ablation_first else 5}  What the network looks at"),
        text("Grad-CAM [2] weights each map of the last stage by the mean gradient of the predicted class with respect "
             "to it, sums them and keeps what is positive: the brighter, the more that place spoke for the class. "
             "Figure 4 has photos of every class that are recognised and, where there are any, that are not. A map on "
             "the bird supports a right answer; one on twigs, sky or water says that the answer came from the "
             "background."),
        layout.whole(layout.figure("birds_gradcam", 4, "Grad-CAM: photos and heat maps, with the true and the "
                                   "predicted class."))]
    effect = []
    if ablation:
        effect = _ablation(layout, f"{5 if ablation_first else 6}  Effect of optimisation", 3, ablation, n)
    return [*story, *(effect + looks if ablation_first else looks + effect),
            text("[1] He et al. 2016, arXiv:1512.03385. [2] Selvaraju et al. 2017, arXiv:1610.02391.", "small")]


def digits_story(layout, n, entries):
    """The pieces of the report on digits from its numbers n."""
    import vae
    recipe, text, head = vae.Recipe(), layout.text, lambda title: layout.text(title, "heading")
    classes, labelled = listed(n["classes"]), fits(n, SCORES)
    n_classes, scale = len(n["classes"]), vae.mixture_prior(len(n["classes"]))[1].item()
    weights = _and(f"{weight:.3f}" for weight in n["mixture_weights"])
    encoder = "-".join(map(str, (vae.PIXELS, *vae.ENCODER_WIDTHS, n_classes + 2 * vae.LATENT)))
    decoder = "-".join(map(str, (2 * vae.FREQUENCIES + vae.LATENT, *vae.DECODER_WIDTHS, vae.PIXELS)))
    story = [
        text(" ".join(entries), "entries"),
        text("Digits: a variational autoencoder and a Gaussian mixture", "title"),
        head("1  Task and data"),
        text(f"Images of {vae.SIDE} × {vae.SIDE} pixels show the digits {classes}. A variational autoencoder with a "
             f"{vae.LATENT}-D latent z learns from the training images alone, a Gaussian mixture over the latent makes "
             f"a classifier of it, and {n['labelled_images']:,} labelled images tell which component is which digit. "
             f"All scores below are of the n = {n['images']:,} images of the test file."),
        head("2  Model"),
        text(f"A class c is drawn, each of the {n_classes} with the same probability, then z from a normal "
             "distribution around the mean of the class, then each pixel from a Bernoulli distribution whose mean the "
             f"decoder gives [1, 2]. The means of the classes lie on a circle, neighbours {vae.SEPARATION:g} standard "
             f"deviations apart, and the standard deviation, {scale:.3f}, is the same for all"
             + (", chosen so that the mixture as a whole has mean 0 and covariance I, as a standard normal prior has"
                if n_classes > 2 else "")
             + f". The encoder is a perceptron {encoder} with batch normalisation and ReLU: the logits of q(c|x), mean "
             f"and log-variance of q(z|x). The decoder, {decoder}, sees z and the sines and cosines of "
             f"{vae.FREQUENCIES} random frequencies of it [3], since a perceptron of z alone is too smooth to show "
             f"every style of a digit in two dimensions. Together they have {n['parameters']:,} parameters."),
        head("3  Training"),
        text("The loss is the negative ELBO, E[" + "\N{MINUS SIGN}log p(x|z)] + KL(q(c, z|x) || p(c, z)), its KL "
             f"divergence weighted by {recipe.kl_weight:g} [4], plus {recipe.ssim_weight:g} (1 \N{MINUS SIGN} SSIM) of "
             f"the image and its reconstruction, plus {recipe.class_weight:g} times the generalised cross-entropy [5] "
             f"of q(c|x) and a cluster label, with q = {recipe.label_noise:g}. The cluster labels come from the "
             "training images alone, by spectral clustering [6] of the graph of nearest neighbours. The generalised "
             f"cross-entropy is robust to wrong ones, and after {_percent(recipe.relabel_from)} of the epochs each "
             f"label moves by {_percent(recipe.relabel)} towards q(c|x) at each visit of its image. The encoder sees "
             f"each image and an augmented copy (rotated by up to {recipe.rotate:g}°, scaled by up to "
             f"{_percent(recipe.scale)}, sheared by up to {recipe.shear:g}, shifted by up to {recipe.shift:g} px); the "
             "decoder learns from the images themselves, the class logits from the copies. Optimiser: AdamW, batches "
             f"of {recipe.batch}, learning rate up to {recipe.lr:g} after a warm-up over {_percent(recipe.warmup)} of "
             f"the steps, then down a cosine; weight decay {recipe.weight_decay:g} of the encoder; {recipe.epochs} "
             "epochs. All of these are the defaults of vae.py. Then EM, written in NumPy, fits the mixture to the "
             "encoder's means of the training images, starting from the class means of the labelled ones."),
        head("4  Reconstruction"),
        *layout.beside("digits_ssim", layout.figure(
            "digits_ssim", 1, f"SSIM of each of the n = {n['images']:,} test images and its refined reconstruction."), [
            text("Table 1 has the scores, Figure 1 the SSIM of each test image, Figure 2 the validation images. From "
                 "the encoder's mean alone the decoder makes the reconstruction of model(x). The refined one, which "
                 "test_reconstruction writes, comes from a local search that starts there (semi-amortised inference "
                 "[7]): the best of latents around the mean, then a pattern search, without randomness and without "
                 "labels."),
            *layout.table(1, f"Reconstruction of n = {n['images']:,} test images.", ["Score", "Value"], [
                ["SSIM from the mean", f"{n['ssim_from_mean']:.4f}"],
                ["SSIM, refined", f"<b>{n['ssim']:.4f}</b>"],
                ["SSIM, refined, standard deviation over images", f"{n['ssim_sd']:.4f}"],
                ["1 \N{EN DASH} mean squared error, refined", f"<b>{n['one_minus_mse']:.4f}</b>"]],
                [0.78 * layout.column, 0.22 * layout.column])]),
        layout.whole(layout.figure("digits_reconstructions", 2, "Validation images, their reconstructions from the "
                                   "encoder's mean and from the refined latent.")),
    ]
    (xx, xy), (_, yy) = n["aggregate_covariance"]
    story += [
        head("5  The latent space"),
        text("Figure 3 decodes the grid of the quantiles 0.05 to 0.95 of the standard normal distribution. Of the test "
             f"images, {_percent(n['inside_grid'])} have their latent mean within it. All of these means together have "
             f"mean ({', '.join(map(_decimals, n['aggregate_mean']))}), variances {_decimals(xx)} and "
             f"{_decimals(yy)} and covariance {_decimals(xy)}; those of a standard normal distribution are (0, 0), 1, "
             "1 and 0."),
        layout.whole(layout.figure("digits_manifold", 3, "Images decoded from the grid of 20 × 20 latents.")),
    ]
    apart = n["mixture_separation"]
    rule = "An image gets the digit of the component that is most probable for its latent mean. "
    shown = (f"Figure 4 shows the latent means of the {n['scatter_images']:,} {plain(n['scatter_of'])} images, Figure "
             f"5 the mixture over them; its components have the weights {weights} (digits {classes}). The two that are "
             f"nearest to each other have means {apart:.1f} standard deviations apart (Mahalanobis distance, by the "
             "mean of their covariances): "
             + ("their 2-standard-deviation ellipses do not meet. " if apart > 4 else "the clusters overlap. "))
    if labelled:
        low, high = wilson(n["accuracy"], n["images"])
        story.append(layout.side_by_side(
            [head("6  Classification"),
             text(f"{rule}The average F1 on the n = {n['images']:,} test images is <b>{n['average_f1']:.4f}</b> "
                  f"(Table 2); the 95 % interval of the accuracy, for this number of images, is {low:.4f} to "
                  f"{high:.4f} (Wilson). {shown}")],
            _scores(layout, 2, n, f"Classification of n = {n['images']:,} test images.")))
    else:
        story += [head("6  Classification"),
                  text(f"{rule}The test file has no labels: there is nothing to score. {shown}")]
    latents = layout.figure("digits_latents", 4, f"The encoder's means of the {plain(n['scatter_of'])} images; the "
                            "background is the digit that the mixture predicts"
                            + (", a ring is a misclassified test image." if labelled else "."))
    mixture = layout.figure("digits_mixture", 5, "The mixture over the same latent means, with the digit that the "
                            "labelled images gave to each component.")
    return [*story, *layout.beside("digits_latents", latents, mixture),
            text("[1] Kingma &amp; Welling 2014, arXiv:1312.6114. [2] Jiang et al. 2017, arXiv:1611.05148. [3] Tancik "
                 "et al. 2020, arXiv:2006.10739. [4] Higgins et al. 2017, ICLR. [5] Zhang &amp; Sabuncu 2018, "
                 "arXiv:1805.07836. [6] Ng, Jordan &amp; Weiss 2002, NIPS 14. [7] Kim et al. 2018, arXiv:1802.02550.",
                 "small")]


# ------------------------------------------------------------------------------------------------------------- command

def build_report(part, folder, entries):
    """Bytes of the report of one part from the figures and numbers in `folder`, at most 3 pages, the first line of its
    text the entry numbers; the same for the same input. Raises InputError."""
    from reportlab.platypus.doctemplate import LayoutError
    numbers, figures = read_numbers(folder, part), read_figures(folder, part)
    if part == "birds":
        ablation = read_ablation(folder)
        stories = [lambda layout, first=first: birds_story(layout, numbers, entries, ablation, first)
                   for first in ([False, True] if ablation else [False])]
    else:
        stories = [lambda layout: digits_story(layout, numbers, entries)]
    found, fitting = "a piece larger than a page", []
    for shrink in SHRINK + MORE_SHRINK:
        if fitting and shrink not in SHRINK:
            break
        for story in stories:
            try:
                content, empty = render(story(Layout(figures, shrink)), entries, f"{' '.join(entries)}: {part}")
            except LayoutError:
                continue
            found = str(len(empty))
            if len(empty) <= forms.MOST_PAGES:
                fitting.append((sum(empty[:-1]) + PAGE[1] * (1 - shrink), content))
    if not fitting:
        raise InputError(f"report of the {part}: expected at most {forms.MOST_PAGES} pages, found {found} even with "
                         f"figures at {MORE_SHRINK[-1]:.0%} of their size; draw lower ones, or ablate fewer variants")
    content = min(fitting, key=lambda pair: pair[0])[1]
    for problem in forms.report_problems(content, entries, f"report of the {part}"):
        raise InputError(problem)
    return content


def add_arguments(parser):
    parser.add_argument("part", nargs="?", choices=(*PARTS, "both"), default="both", help="default: both")
    parser.add_argument("--figures", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")
    parser.add_argument("--group", type=Path, default=Path("group.txt"), metavar="FILE", help="default: group.txt")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER", help="default: report")


def run(args):
    """Writes the reports; returns 0."""
    import bird
    entries = forms.read_entries(args.group)
    for problem in forms.entry_problems(entries, args.group):
        raise InputError(problem)
    parts = PARTS if args.part == "both" else (args.part,)
    reports = {args.out / part / f"{forms.file_name(entries)}.pdf": build_report(part, args.figures, entries)
               for part in parts}
    for problem in forms.sample_problems(entries, args.group):
        print(f"note: {problem}; `zip` will refuse it")
    if "birds" in parts and read_ablation(args.figures) is None:
        print(f"note: {args.figures / 'ablation.json'} is not there, so the section 'effect of optimisation' is left "
              f"out; `{MAKERS['ablation']}` makes it")
    for path in reports:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: expected a folder for the report, found: {error.strerror}") from None
    with bad_input_of(bird):
        bird.write_files({str(path): content for path, content in reports.items()})
    for path in reports:
        print(f"wrote {path}")
    return 0
