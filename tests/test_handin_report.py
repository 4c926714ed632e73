"""The commands `report` and `zip`, on tiny drawn figures and made-up numbers; PDFs and zips are opened and read."""
import dataclasses
import json
import os
import types
import zipfile
from pathlib import Path

import pypdf
import pytest
from peers import write_all
from PIL import Image, ImageDraw

import bird
import vae
from handin import forms, pack
from handin.grading.fetch import OFFLINE, FetchError
from handin.report import report, results

typst = pytest.importorskip("typst")
ROOT = Path(__file__).resolve().parent.parent
SIZES = {  # px of each figure at 200 dpi
    "birds_learning_curves": (1400, 480), "birds_confusion": (680, 600), "birds_gradcam": (1400, 1060),
    "digits_learning_curves": (1400, 380), "digits_ssim": (680, 480), "digits_reconstructions": (1400, 580),
    "digits_manifold": (680, 680), "digits_latents": (680, 740), "digits_mixture": (680, 740)}
SCORES = {"average_f1": 0.8765, "f1_macro": 0.8642, "accuracy": 0.8888, "precision_macro": 0.8531,
          "recall_macro": 0.8357}
AUTHORS, ENTRIES = "Asha Rao (2019EE30456); Ravi Iyer (2020MT60789)", ["2019EE30456", "2020MT60789"]


def bird_results(classes):
    map_ = {"photos": 12, "centre": 0.41, "entropy": 0.91}
    return dataclasses.asdict(results.BirdResults(
        classes=classes, photos=1357, scores=SCORES, accuracy_interval=[0.8711, 0.9045],
        per_class=[{"class": name, "precision": 0.5, "recall": 0.75, "f1": 0.6 + 0.3 * i / len(classes), "photos": 9}
                   for i, name in enumerate(classes)],
        confusions=[[classes[0], classes[-1], 34]],
        layers=[{"name": "photo", "shape": [3, 144, 144], "parameters": 0},
                {"name": "linear", "shape": [10], "parameters": 10250}],
        history=[{"epoch": 55, "train_accuracy": 0.71, "val_accuracy": 0.8322, "val_loss": 0.5},
                 {"epoch": 66, "train_accuracy": 0.72, "val_accuracy": 0.83, "val_loss": 0.505}], time_limited=False,
        parameters=7654321, image_size=144, crop_sizes=[96, 128, 144],
        settings=dataclasses.asdict(bird.Config(dropout=0.27, seed=5)), epochs=66,
        best_epoch=55, minutes=44.4, device="cpu", train_photos=4321, validation_photos=987,
        validation_accuracy=0.8322, validation_f1=0.8246,
        grad_cam=[{"class": name, "right": map_, "wrong": {**map_, "centre": 0.23} if i else None}
                  for i, name in enumerate(classes)]))


DIGITS = dataclasses.asdict(results.DigitResults(
    classes=[1, 4, 8], images=2468, scores=SCORES, accuracy_interval=[0.8711, 0.9045],
    validation=dict.fromkeys(SCORES, 0.9321), labelled_images=15, validation_ssim={"1": 0.912, "4": 0.634, "8": 0.634},
    manifold={"cells": {"1": 200, "4": 120, "8": 80}, "between": 28,
              "axes": [{"digit": 1, "slant": [-12.3, 35.2], "ink": [0.05, 0.111]}]},
    ssim=0.7531, ssim_sd=0.0864, ssim_from_mean=0.7319, one_minus_mse=0.9753, inside_grid=0.847, scatter_of="training",
    aggregate_mean=[0.11, -0.22], aggregate_covariance=[[1.13, -0.17], [-0.17, 0.93]], scatter_images=13579,
    pairs=[{"digits": [1, 4], "distance": 6.54, "meets": None, "misclassified": [3, 4]},
           {"digits": [4, 8], "distance": 8.1, "meets": None, "misclassified": [0, 1]}],
    within=[0.39, 0.86, 0.99], parameters=1234567,
    layers=[{"name": "image", "shape": [784], "parameters": 0},
            {"name": "linear, batch norm, ReLU", "shape": [512], "parameters": 402944}],
    history=[{"epoch": 1, "reconstruction": 170.0, "KL": 1.5, "SSIM": 0.25},
             {"epoch": 2, "reconstruction": 92.2, "KL": 2.9, "SSIM": 0.756}], training_images=14748, minutes=11.6,
    device="cpu", elbo={"training": -103.4, "test": -104.1}, elbo_gap=[0.7, 3.9],
    settings={**dataclasses.asdict(vae.Config()), "components": 3, "frequencies": 128, "separation": 7.8,
              "radius": 2.7, "prior_std": 0.3}))
ABLATION = {"epochs": 9, "image_size": 88, "photos": 1221, "rows": [
    {"variant": "the config", "seeds": [0, 1], "accuracy": 0.8212, "accuracy_sd": 0.0131, "f1": 0.81, "f1_sd": 0.0141},
    {"variant": "no augmentation", "seeds": [0], "accuracy": 0.7457, "accuracy_sd": None, "f1": 0.7345,
     "f1_sd": None}]}


def pdf_bytes(*lines):
    """A PDF with one page for each of the lines."""
    return typst.compile("\n#pagebreak()\n".join(f"#{json.dumps(line)}" for line in lines).encode())


PDFS = {"birds": pdf_bytes(AUTHORS + "\nBirds, Grad-CAM, convolution, birds", "second page"),  # tell their topic
        "digits": pdf_bytes(AUTHORS + "\nDigits, autoencoder, mixture of digits")}


def text_of(path):
    """The text of all pages on one line."""
    return " ".join(forms.read_pdf(Path(path).read_bytes())[1])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with group.txt, names.txt, observations and figures/; `pdf`: where the reports will be."""
    monkeypatch.chdir(tmp_path)
    figures = tmp_path / "figures"
    figures.mkdir()
    for name, size in SIZES.items():
        picture = Image.new("RGB", size, "#d0e0f0")
        ImageDraw.Draw(picture).text((9, 9), name, fill="black")
        picture.save(str(figures / (name + ".png")))
    write_all(tmp_path, {
        "group.txt": "2019EE30456\n2020MT60789\n", "names.txt": "Asha Rao\nRavi Iyer\n",
        "figures/ablation.json": json.dumps(ABLATION),
        **{f"observations_{part}.txt": f"We looked at the {part}.\n\nA second *paragraph*." for part in results.PARTS}})
    def write(birds=None, digits=DIGITS):
        numbers = {"birds": birds or bird_results([f"bird {i}" for i in range(10)]), "digits": digits}
        (figures / "numbers.json").write_text(json.dumps(numbers))
    write()
    pdf = {part: tmp_path / "report" / part / "2019EE30456_2020MT60789.pdf" for part in results.PARTS}
    return types.SimpleNamespace(folder=tmp_path, figures=figures, write=write, pdf=pdf)


@pytest.fixture
def report_text(place, handin):
    """report_text(part): the text of the report that the command lays out, on one line."""
    def text(part, *words):
        done = handin("report", part, *words)
        assert (done.code, done.err) == (0, "")
        return text_of(place.pdf[part])
    return text


def refused(done, *words):
    """A command that ended with one line on stderr, which has all the words."""
    assert done.code == 2 and done.err.count("\n") == 1 and done.out == ""
    assert all(word in done.err for word in words), done.err


STATED = {
    "birds": ["0.8765", "0.8642", "0.8888", "0.8531", "0.8357", "1,357 test photos", "7,654,321", "4,321 photos", "987",
              "0.8246", "0.8322", "66 of", "44 minutes", "epoch 55", "144 px", "dropout 0.27", "Seed 5", "0.8711",
              "bird 0 classified as bird 9 (34)", "1,221 photos that were not trained on", "9 epochs at 88 px",
              "0.8212 ± 0.0131", "0.7457", "The accuracy falls by 0.0755 ± 0.0166.", "We looked at the birds.",
              "A second *paragraph*.", "the curves show no overfitting", "0.41 / 0.23", "The row “no",
              "Central.", "12 misclassified photos: less central.", "crops of 96, 128 and 144 px"],
    "digits": ["0.8765", "0.8642", "0.8888", "0.9321", "2,468 test images", "0.7531", "0.7319", "0.9753", "1,234,567",
               "15 labelled", "84.7 %", "0.11, −0.22", "1.13", "13,579 training images", "6.5 standard deviations",
               "the clusters are separated", "39.0 %, 86.0 % and 99.0 %", "the clusters follow the Gaussians.", "3 / 4",
               "274 of 2,468", "for the 1 the slant to the right changes from −12° to 35°", "402,944",
               "14,748 training",
               "rises from −171.5 to −95.1 nats", "the gap is 0.7 ± 3.9", "those of 1 are reconstructed best",
               "(mean SSIM 0.912)", "(binary cross-entropy + KL)", "a pseudo-label", "only for scoring"]}


def test_the_reports_state_what_was_measured_on_three_a4_pages_at_most(place, handin):
    done = handin("report")
    assert (done.code, done.err) == (0, "")
    first = {part: path.read_bytes() for part, path in place.pdf.items()}
    for part, content in first.items():
        pages, lines = forms.read_pdf(content)
        assert 1 <= pages <= 3 and lines[0] == AUTHORS and len(content) < 5e6
        text = " ".join(lines).replace("\N{NO-BREAK SPACE}", " ").replace("\N{SOFT HYPHEN}", "-")
        assert [words for words in STATED[part] if words not in text] == []
        found = pypdf.PdfReader(str(place.pdf[part])).pages
        assert sum(len(page.images) for page in found) == len(report.FIGURES[part])
        assert [round(float(side)) for side in found[0].mediabox[2:]] == [595, 842]
    handin("report")
    assert first == {part: path.read_bytes() for part, path in place.pdf.items()}  # the same input, the same bytes


def test_a_beta_clusters_that_overlap_and_missing_labels_are_reported(place, report_text):
    pairs = [{"digits": [1, 4], "distance": 2.3, "meets": 2, "misclassified": None}]
    place.write(digits={**DIGITS, "scores": None, "accuracy_interval": None, "pairs": pairs, "scatter_of": "test",
                        "settings": {**DIGITS["settings"], "beta": 3.5}})
    text = report_text("digits")
    for words in ("The clusters overlap", "2.3 standard deviations", "13,579 test images", "no labels",
                  "entropy + 3.5 × KL)"):
        assert words in text
    assert "0.8765" not in text and "0.9321" in text


def test_names_come_from_the_flag_or_a_file_and_without_any_a_note(place, handin):
    def first_line(folder):
        return forms.read_pdf((place.folder / folder).read_bytes())[1][0]
    assert handin("report", "digits", "--names", "Ana Ué,  Bo Li").code == 0
    assert first_line(place.pdf["digits"]) == "Ana Ué (2019EE30456); Bo Li (2020MT60789)"
    refused(handin("report", "digits", "--names", "Ana"), "--names", "2 names", "found 1")
    (place.folder / "names.txt").unlink()
    (place.folder / "group.txt").write_bytes(b"\xef\xbb\xbf\r\n 2021CS10001 \r\n\r\n")
    done = handin("report", "digits", "--out", "elsewhere")
    assert done.code == 0 and "no names" in done.out and "sample" in done.out
    assert first_line("elsewhere/digits/2021CS10001.pdf") == "2021CS10001"


def test_what_is_not_written_or_measured_yet_is_said_and_refused(place, handin):
    (place.folder / "observations_birds.txt").write_text(" \n")
    (place.folder / "observations_digits.txt").unlink()
    (place.figures / "ablation.json").unlink()
    done = handin("report")
    assert done.code == 0 and done.out.count("is missing or empty; `zip` will reject") == 2
    assert "python -m handin ablate" in done.out and "Not measured yet" in text_of(place.pdf["birds"])
    for part, path in place.pdf.items():
        text, problems = text_of(path), forms.report_problems(part, path.read_bytes(), ENTRIES, path.name)
        assert "No observations yet" in text and f"observations_{part}.txt" in text
        assert f"expected your own observations, which observations_{part}.txt holds" in problems.pop(0)
        assert [("python -m handin ablate" in problem) for problem in problems] == [True] * (part == "birds")


def test_a_student_writes_their_own_text_into_a_copy_of_the_template(place, handin, report_text):
    own, title = place.folder / "own.typ", "= Task and data"
    own.write_text(report.TEMPLATE.read_text(encoding="utf-8").replace(title, f"{title}\nThe crows look alike to me. "),
                   encoding="utf-8")
    assert "The crows look alike to me." in report_text("birds", "--template", own)
    before = place.pdf["birds"].read_bytes()
    for content, words in (("#let x = (\n", ["own.typ", "unclosed"]),
                           ("#lorem(5000)\n", ["at most 3 pages, found", "shorten"])):
        own.write_text(content)
        refused(handin("report", "birds", "--template", own), *words)
    assert place.pdf["birds"].read_bytes() == before
    refused(handin("report", "birds", "--template", "none.typ"), "none.typ", "a Typst template")


@pytest.mark.parametrize("n", [3, 20])
def test_long_and_strange_class_names_fit_and_no_page_is_mostly_blank(place, report_text, monkeypatch, n):
    names = ["<b>*Ganges* & $Brahmaputra$</b>", "Ωδ Грач ≥", *("W" * 60 + str(i) for i in range(n - 2))]
    place.write(birds=bird_results(names))
    if n > 12:  # as `figures` draws them
        Image.new("L", (1400, 1120), 90).save(str(place.figures / "birds_confusion.png"))
        Image.new("L", (1400, 1680), 90).save(str(place.figures / "birds_gradcam.png"))
    seen, measure = [], report.measure_pages
    monkeypatch.setattr(report, "measure_pages", lambda folder: seen.append(measure(folder)) or seen[-1])
    text = report_text("birds")
    assert forms.read_pdf(place.pdf["birds"].read_bytes())[0] <= 3 and "W" * 27 not in text
    assert "*Ganges* & $Bra" in text and "Ωδ Грач ≥" in text
    assert min(blank + report.SCALE_COST * (1 - scale) for (pages, blank), scale in zip(seen, report.SCALES)
               if pages <= 3) < 0.7


@pytest.mark.parametrize("part, name, content, words", [
    ("birds", "birds_gradcam.png", None, ["handin figures birds"]),
    ("digits", "digits_ssim.png", None, ["handin figures digits"]), ("both", "numbers.json", None, ["figures birds"]),
    ("birds", "numbers.json", "{", ["handin figures"]), ("birds", "numbers.json", '{"birds": {}}', ["found others"]),
    ("birds", "numbers.json", '{"digits": {}}', ["birds numbers", "found none"]),
    ("birds", "numbers.json", json.dumps({"birds": {**bird_results(["a"]), "settings": {}}}), ["epochs"]),
    ("birds", "ablation.json", '{"rows": [{"variant": 3}]}', ["handin ablate", "seeds"]),
    ("birds", "birds_confusion.png", "no picture", ["handin figures birds"])])
def test_missing_or_broken_input_is_one_line_with_the_command(place, handin, part, name, content, words):
    (place.figures / name).unlink()
    if content:
        (place.figures / name).write_text(content)
    refused(handin("report", part), name, *words)
    assert not (place.folder / "report").exists()


@pytest.mark.parametrize("command, group, words", [
    ("report digits --out group.txt", None, ["group.txt"]), ("report neither", None, ["invalid choice", "--help"]),
    ("nothing", None, ["invalid choice", "--help"]),
    ("report", "2019ee30456\n", ["group.txt", "2019ee30456", "upper case"])])
def test_malformed_entries_places_and_words_are_one_line(place, handin, command, group, words):
    if group:
        (place.folder / "group.txt").write_text(group)
    refused(handin(*command.split()), *words)


@pytest.fixture(scope="module")
def quick_check():
    """The quick check, made once for each script: it starts a process that imports torch."""
    check, known = pack.grade_script, {}
    def checked(part, script, *rest):
        key = part, script.read_bytes()
        if key not in known:
            known[key] = check(part, script, *rest)
        return known[key]
    return checked


@pytest.fixture
def submission(place, quick_check, monkeypatch):
    """All that the zips of both parts need."""
    def fetch(link, names, folder):
        if "birds" not in link:
            raise FetchError(f"{link}: {OFFLINE} drive.google.com")
        return [write_all(Path(folder), {names[0]: bytes(3 * 10 ** 6)}) / names[0]]
    monkeypatch.setattr(pack, "grade_script", quick_check)
    monkeypatch.setattr(pack, "fetch", fetch)
    for part, content in PDFS.items():
        script = pack.SCRIPTS[part]
        write_all(place.folder, {str(place.pdf[part]): content, script: (ROOT / script).read_bytes(),
                                 f"model_path_{part}.txt": f"https://drive.google.com/file/d/{part}/view\n"})
    place.zip = place.folder / "submission" / "birds" / "submission.zip"
    return place


def test_the_zip_unpacks_to_one_folder_with_exactly_four_files(submission, handin):
    (submission.folder / "group.txt").write_bytes(b"\xef\xbb\xbf2019EE30456 \r\n\r\n2020MT60789\r\n")
    done = handin("zip", "birds")
    assert (done.code, done.err) == (0, "") and "model_path_birds.txt: the link gives bird.pth (3.0 MB)" in done.out
    with zipfile.ZipFile(str(submission.zip)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
        assert archive.testzip() is None
    folder = "2019EE30456_2020MT60789"
    assert content == {
        f"{folder}/{folder}.pdf": submission.pdf["birds"].read_bytes(),
        f"{folder}/bird.py": (ROOT / "bird.py").read_bytes(), f"{folder}/group.txt": b"2019EE30456\n2020MT60789\n",
        f"{folder}/model_path.txt": b"https://drive.google.com/file/d/birds/view\n"}
    before, observations = submission.zip.read_bytes(), submission.folder / "observations_birds.txt"
    assert "is newer than" not in done.out
    os.utime(str(observations), (2e9, 2e9))  # changed after the report
    done = handin("zip", "birds")
    assert done.code == 0 and submission.zip.read_bytes() == before
    assert "note: observations_birds.txt is newer than" in done.out
    done = handin("zip", "digits")
    assert done.code == 0 and "note: model_path_digits.txt: link not checked: https://drive" in done.out
    (submission.folder / "bird.py").rename(submission.folder / "mine.py")
    assert handin("zip", "birds", "--script", "mine.py", "--out", "other").code == 0
    with zipfile.ZipFile("other/submission.zip") as archive:
        assert f"{folder}/bird.py" in archive.namelist()


LINK, PDF = "model_path_birds.txt", "report/birds/2019EE30456_2020MT60789.pdf"


@pytest.mark.parametrize("name, content, words", [
    ("group.txt", None, ["group.txt", "found: No such file"]),
    ("group.txt", "2019EE3045\n2020MT60789\n", ["group.txt", "'2019EE3045'"]),
    ("group.txt", "2019EE30456 2020MT60789\n", ["group.txt", "on each line"]),
    ("group.txt", "\n", ["group.txt", "one or two entry numbers, found 0"]),
    ("group.txt", b"\xff\xfe2\x000\x00", ["group.txt", "UTF-8"]),
    (LINK, None, ["model_path.txt", "the link"]), (LINK, "\nhttps://example.org/bird.pth\n", [LINK, "found none"]),
    (LINK, "bird.pth\n", [LINK, "'bird.pth'", "https://"]),
    (LINK, "https://[half/bird.pth\n", [LINK, "https://[half"]),
    (LINK, "link: https://example.org\n", [LINK, "begins with https://", "only the link there"]),
    (LINK, "https://example.org/a here it is\n", [LINK, "expected only the link"]),
    (LINK, "https://drive.google.com/file/d/FILE_ID/view\n", [LINK, "sample"]),
    (LINK, "https://drive.google.com/file/d/digits/view\n", [LINK, "model_path_digits.txt", "the same"]),
    (PDF, None, ["2019EE30456_2020MT60789.pdf", "python -m handin report birds"]),
    (PDF, "no PDF", ["2019EE30456_2020MT60789.pdf", "expected a PDF"]),
    (PDF, pdf_bytes(AUTHORS, "b", "c", "d"), ["at most 3 pages, found 4"]),
    (PDF, pdf_bytes("A report", AUTHORS), ["first line", "'A report'"]),
    (PDF, pdf_bytes("2019EE30456 2020MT60789"), ["names in the first line", "--names"]),
    (PDF, PDFS["digits"], ["found the digits"]),
    ("bird.py", None, ["bird.py", "the birds script"]),
    ("bird.py", "x = 'vae.csv'", ["bird.py", "bird.csv", "found the digits"]),
    ("bird.py", "import torchvision.models\n# bird.csv", ["bird.py: ", "torchvision"])],
    ids=lambda value: "pdf" if isinstance(value, bytes) else None)
def test_each_mistake_is_refused_with_one_line(submission, handin, name, content, words):
    (submission.folder / name).unlink()
    if content is not None:
        write_all(submission.folder, {name: content})
    done = handin("zip", "birds")
    assert done.code == 2 and not submission.zip.exists()
    lines = [line for line in done.err.splitlines() if all(word in line for word in words)]
    assert lines and (done.err.count("\n") == 1 or "torchvision" in words), done.err


def test_the_link_of_an_earlier_zip_is_not_taken_twice(submission, handin):
    for part in results.PARTS:
        (submission.folder / f"model_path_{part}.txt").unlink()
    (submission.folder / "model_path.txt").write_text("https://example.org/model.pth\n")
    assert handin("zip", "digits").code == 0
    refused(handin("zip", "birds"), "model_path.txt", "the same", "model_path_birds.txt")


def test_all_problems_are_listed_and_the_earlier_zip_is_kept(submission, handin):
    write_all(submission.folder, {"group.txt": "2021CS10001\n2021CS10002\n", LINK: "nowhere\n",
                                  str(submission.zip): "earlier"})
    (submission.folder / "bird.py").unlink()
    done = handin("zip", "birds")
    assert done.code == 2 and done.err.count("\n") == 4
    assert all(word in done.err for word in ("sample 2021CS10001 2021CS10002", "nowhere", "bird.py", "10002.pdf"))
    (submission.folder / "group.txt").write_text("2019EE30456\n2020MT60789\n2019EE30456\n")
    error = handin("zip", "birds").err
    assert "found 3" in error and "a duplicate" in error and submission.zip.read_bytes() == b"earlier"
