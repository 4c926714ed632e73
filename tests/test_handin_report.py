"""The commands `report` and `zip`, on tiny drawn figures and made-up numbers; PDFs and zips are opened and read."""
import io
import json
import re
import sys
import types
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

pypdf = pytest.importorskip("pypdf")
pytest.importorskip("reportlab")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import vae
from handin import forms, pack, report
from handin.__main__ import main

SIZES = {  # px of each figure at 200 dpi
    "birds_architecture": (680, 480), "birds_learning_curves": (1400, 520), "birds_confusion": (680, 620),
    "birds_gradcam": (1400, 1130), "digits_ssim": (680, 480), "digits_reconstructions": (1400, 400),
    "digits_manifold": (1040, 1020), "digits_latents": (680, 740), "digits_mixture": (680, 740)}
SCORES = {"average_f1": 0.8765, "macro_f1": 0.8642, "accuracy": 0.8888, "macro_precision": 0.8531,
          "macro_recall": 0.8357}
SETTINGS = {"epochs": 77, "batch": 24, "learning_rate": 0.0031, "warmup": 0.13, "weight_decay": 0.07, "dropout": 0.25,
            "label_smoothing": 0.11, "mixup": 0.17, "cutmix": 0.43, "average": 0.997, "area": 0.37, "aspect": 1.29,
            "rotate": 17.0, "colour": 0.33, "tint": 0.09, "held_out": 0.19, "seed": 5, "class_weights": True,
            "mirror": True}


def bird_numbers(classes):
    return {**SCORES, "photos": 1357, "parameters": 7654321, "classes": classes, "epochs": 66, "chosen_epoch": 55,
            "minutes": 44.4, "device": "cpu", "train_photos": 4321, "validation_photos": 987, "validation_f1": 0.8246,
            "image_size": 144, "settings": SETTINGS,
            "per_class": [{"class": name, "precision": 0.5 + 0.4 * i / len(classes), "recall": 0.75,
                           "f1": 0.6 + 0.3 * i / len(classes), "photos": 100 + i} for i, name in enumerate(classes)]}


DIGITS = {**SCORES, "images": 2468, "ssim": 0.7531, "ssim_sd": 0.0864, "ssim_from_mean": 0.7319,
          "one_minus_mse": 0.9753, "inside_grid": 0.847, "aggregate_mean": [0.11, -0.22],
          "aggregate_covariance": [[1.13, -0.17], [-0.17, 0.93]], "scatter_of": "training", "scatter_images": 13579,
          "parameters": 1234567, "classes": [1, 4, 8], "mixture_weights": [0.371, 0.328, 0.301],
          "mixture_separation": 6.54, "labelled_images": 15}
ABLATION = {"epochs": 9, "image_size": 88, "photos": 1221, "rows": [
    {"variant": "the recipe", "seeds": [0, 1], "f1": [0.8, 0.82], "f1_mean": 0.81, "f1_sd": 0.0141,
     "minutes_mean": 3.1},
    {"variant": "no augmentation", "seeds": [0], "f1": [0.7345], "f1_mean": 0.7345, "f1_sd": None,
     "minutes_mean": 2.9}]}


def pdf_bytes(*lines):
    """A PDF with one page for each of the lines."""
    from reportlab.pdfgen.canvas import Canvas
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for line in lines:
        canvas.drawString(72, 700, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def text_of(path):
    """The text of all pages on one line, with plain blanks."""
    return " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(str(path)).pages).split())


def pictures_of(path):
    """How many pictures the pages show."""
    drawn = [page["/Resources"].get("/XObject", {}) for page in pypdf.PdfReader(str(path)).pages]
    return sum(thing.get_object()["/Subtype"] == "/Image" for things in drawn for thing in things.values())


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """A folder with group.txt, figures/ and a command: place.call(*words) -> its code and what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").mkdir()
    for name, (width, height) in SIZES.items():
        picture = Image.new("RGBA", (width, height), "white")
        ImageDraw.Draw(picture).text((width // 2, height // 2), name, fill="black")
        picture.save(str(tmp_path / "figures" / (name + ".png")))
    (tmp_path / "group.txt").write_text("2019EE30456\n2020MT60789\n")

    def write(birds=None, digits=DIGITS, ablation=ABLATION):
        numbers = {"birds": birds or bird_numbers([f"bird {i}" for i in range(10)]), "digits": digits}
        (tmp_path / "figures" / "numbers.json").write_text(json.dumps(numbers))
        if ablation is not None:
            (tmp_path / "figures" / "ablation.json").write_text(json.dumps(ablation))

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=out, err=err)

    write()
    pdf = {part: tmp_path / "report" / part / "2019EE30456_2020MT60789.pdf" for part in report.PARTS}
    return types.SimpleNamespace(folder=tmp_path, figures=tmp_path / "figures", write=write, call=call, pdf=pdf)


def refused(done, *words):
    """A command that ended with one line on stderr, which has all the words."""
    assert done.code == 2 and done.err.count("\n") == 1 and done.out == ""
    assert all(word in done.err for word in words), done.err


# -------------------------------------------------------------------------------------------------------------- report

def test_both_reports_begin_with_the_entries_and_have_three_a4_pages_at_most(place):
    done = place.call("report")
    assert (done.code, done.err) == (0, "")
    for path in place.pdf.values():
        pages = pypdf.PdfReader(str(path)).pages
        assert 1 <= len(pages) <= 3 and pages[0].extract_text().splitlines()[0] == "2019EE30456 2020MT60789"
        assert [round(float(side)) for side in pages[0].mediabox[2:]] == [595, 842]
        assert path.stat().st_size < 5e6


def test_the_report_on_birds_states_what_was_measured(place):
    assert place.call("report", "birds").code == 0 and not place.pdf["digits"].exists()
    text = text_of(place.pdf["birds"])
    stated = [f"{score:.4f}" for score in SCORES.values()]
    stated += ["n = 1,357", "7,654,321", "4,321", "987", "0.8246", "66 of the 77", "44 minutes", "Epoch 55", "144 px",
               "batches of 24", "0.0031", "13 %", "0.07", "0.25", "0.11", "17 %", "43 %", "0.997", "37 %", "1.29",
               "17°", "33 %", "9 %", "19 %", "seed 5", "bird 9", "0.870", "109"]
    stated += ["n = 1,221", "9 epochs", "88 px", "no augmentation", "0.8100 ± 0.0141", "0.7345", "–0.0755", "2.9"]
    assert [words for words in stated if words not in text] == []
    low, high = report.wilson(0.8888, 1357)
    assert f"{low:.4f} to {high:.4f}" in text and 0.87 < low < 0.8888 < high < 0.91
    assert re.findall(r"(?:Figure|Table) \d\.", text) == [
        "Figure 1.", "Figure 2.", "Figure 3.", "Table 1.", "Table 2.", "Figure 4.", "Table 3."]
    assert pictures_of(place.pdf["birds"]) == 4


def test_the_report_on_digits_states_what_was_measured(place):
    assert place.call("report", "digits").code == 0
    text = text_of(place.pdf["digits"])
    stated = [f"{score:.4f}" for score in SCORES.values()] + [
        "n = 2,468", "0.7531", "0.0864", "0.7319", "0.9753", "1,234,567", "15 labelled", "0.371, 0.328 and 0.301",
        "1, 4, 8", "84.7 %", "(0.11, –0.22)", "1.13 and 0.93", "–0.17", "13,579 training", "6.5 standard deviations",
        "do not meet"]
    recipe = vae.Recipe()
    stated += [f"{vae.SEPARATION:g} standard deviations", f"weighted by {recipe.kl_weight:g}",
               f"plus {recipe.ssim_weight:g} (1", f"plus {recipe.class_weight:g} times", f"q = {recipe.label_noise:g}",
               f"{recipe.rotate:g}°", f"{recipe.epochs} epochs", f"batches of {recipe.batch}", f"up to {recipe.lr:g}",
               f"784-{'-'.join(map(str, vae.ENCODER_WIDTHS))}-7", f"{vae.FREQUENCIES} random frequencies"]
    assert [words for words in stated if words not in text] == []
    assert re.findall(r"(?:Figure|Table) \d\.", text) == [
        "Figure 1.", "Table 1.", "Figure 2.", "Figure 3.", "Table 2.", "Figure 4.", "Figure 5."]
    assert pictures_of(place.pdf["digits"]) == 5


def test_clusters_that_overlap_are_reported_as_such(place):
    place.write(digits={**DIGITS, "mixture_separation": 2.3, "scatter_of": "test"})
    assert place.call("report", "digits").code == 0
    text = text_of(place.pdf["digits"])
    assert "2.3 standard deviations" in text and "clusters overlap" in text and "13,579 test images" in text


def test_digits_without_labels_are_reported_without_their_scores(place):
    place.write(digits={key: value for key, value in DIGITS.items() if key not in SCORES})
    assert place.call("report", "digits").code == 0
    text = text_of(place.pdf["digits"])
    assert "no labels" in text and "0.7531" in text and "Macro F1" not in text


def test_the_same_input_gives_the_same_bytes(place):
    place.call("report")
    first = {part: path.read_bytes() for part, path in place.pdf.items()}
    place.call("report")
    assert first == {part: path.read_bytes() for part, path in place.pdf.items()}


def test_one_entry_names_the_report_alone(place):
    (place.folder / "group.txt").write_bytes(b"\xef\xbb\xbf\r\n 2019EE30456 \r\n\r\n")
    assert place.call("report", "digits", "--out", "elsewhere").code == 0
    path = place.folder / "elsewhere" / "digits" / "2019EE30456.pdf"
    assert forms.read_pdf(path.read_bytes())[1] == "2019EE30456"


def test_without_an_ablation_the_section_is_left_out_and_a_note_names_its_command(place):
    (place.figures / "ablation.json").unlink()
    done = place.call("report", "birds")
    assert done.code == 0 and "python -m handin ablate" in done.out
    assert "Effect of optimisation" not in text_of(place.pdf["birds"])


def test_sample_entries_are_reported_with_a_note(place):
    (place.folder / "group.txt").write_text("2021CS10001\n")
    done = place.call("report", "digits")
    assert done.code == 0 and "sample" in done.out


@pytest.mark.parametrize("part, name, command", [
    ("birds", "birds_gradcam.png", "handin figures birds"), ("digits", "digits_ssim.png", "handin figures digits"),
    ("both", "numbers.json", "handin figures birds")])
def test_what_is_missing_names_the_command_that_makes_it(place, part, name, command):
    (place.figures / name).unlink()
    refused(place.call("report", part), name, command)
    assert not (place.folder / "report").exists()


@pytest.mark.parametrize("name, content, words", [
    ("numbers.json", "{", ["numbers.json", "JSON"]),
    ("numbers.json", '{"birds": {}}', ["numbers.json", "average_f1", "none"]),
    ("numbers.json", '{"digits": {}}', ["numbers.json", "numbers of the birds"]),
    ("numbers.json", json.dumps({"birds": {**bird_numbers(["a"]), "accuracy": float("nan")}}), ["accuracy", "form"]),
    ("numbers.json", json.dumps({"birds": {**bird_numbers(["a"]), "settings": {}}}), ["settings", "form"]),
    ("ablation.json", '{"rows": [{"variant": 3}]}', ["ablation.json", "handin ablate"]),
    ("birds_confusion.png", "no picture", ["birds_confusion.png", "PNG", "handin figures birds"])])
def test_broken_input_is_one_line(place, name, content, words):
    (place.figures / name).write_text(content)
    refused(place.call("report", "birds"), *words)


def test_a_malformed_entry_number_is_refused(place):
    (place.folder / "group.txt").write_text("2019ee30456\n")
    refused(place.call("report"), "group.txt", "2019ee30456", "upper case")


def test_a_place_that_is_a_file_is_refused(place):
    refused(place.call("report", "digits", "--out", "group.txt"), "group.txt", "a folder")


def test_what_does_not_fit_on_three_pages_is_refused_and_the_earlier_report_kept(place, monkeypatch):
    place.call("report", "birds")
    before = place.pdf["birds"].read_bytes()
    monkeypatch.setattr(report, "PAGE", (595, 420))
    refused(place.call("report", "birds"), "at most 3 pages", "lower")
    assert {path: path.read_bytes() for path in place.pdf["birds"].parent.iterdir()} == {place.pdf["birds"]: before}


def test_larger_figures_are_drawn_smaller_to_fit(place):
    Image.new("L", (1400, 2000), 90).save(str(place.figures / "birds_gradcam.png"))
    assert place.call("report", "birds").code == 0
    assert len(pypdf.PdfReader(str(place.pdf["birds"])).pages) == 3


def test_many_classes_with_long_and_strange_names_fit(place):
    names = ["<b>Ganges & Brahmaputra</b>", "Ωδ Грач ≥", "W" * 200, *(f"Species number {i} of 57" for i in range(57))]
    place.write(birds=bird_numbers(names))
    assert place.call("report", "birds").code == 0
    text = text_of(place.pdf["birds"])
    assert "<b>Ganges & Brahmaputra</b>" in text and "Ωδ Грач ≥" in text and "and 48 more" in text
    assert "W" * 41 not in text.replace(" ", "") and "The 12 of the 60 classes" in text
    assert forms.read_pdf(place.pdf["birds"].read_bytes())[0] <= 3


def test_nothing_lies_in_the_margins(place):
    place.write(birds=bird_numbers(["W" * 60, "M" * 60]))
    place.call("report")
    places = []
    for page in pypdf.PdfReader(str(place.pdf["birds"])).pages:
        page.extract_text(visitor_text=lambda text, cm, tm, *_: places.append((text, tm[4] + cm[4])))
    assert len(places) > 50
    assert all(report.MARGIN - 1 <= x <= 595 - report.MARGIN for text, x in places if text.strip())


# ----------------------------------------------------------------------------------------------------------------- zip

@pytest.fixture
def submission(place, monkeypatch):
    """All that a zip of birds needs, with a stand-in for grade's quick check: submission.rows are what it finds."""
    place.rows = [types.SimpleNamespace(check="compiles", status="pass", detail="")]
    checked = []
    grade = types.ModuleType("handin.grade")
    grade.quick_check = lambda path, part: checked.append((Path(path).name, part)) or place.rows
    monkeypatch.setitem(sys.modules, "handin.grade", grade)
    monkeypatch.setattr("handin.grade", grade, raising=False)
    place.checked, place.zip = checked, place.folder / "submission.zip"
    place.pdf["birds"].parent.mkdir(parents=True)
    place.pdf["birds"].write_bytes(pdf_bytes("2019EE30456 2020MT60789", "second page"))
    (place.folder / "bird.py").write_bytes(b"print('a bird')\n")
    (place.folder / "model_path.txt").write_text("https://drive.google.com/file/d/1a2b3c/view\n")
    return place


def test_the_zip_unpacks_to_one_folder_with_exactly_four_files(submission):
    (submission.folder / "group.txt").write_bytes(b"\xef\xbb\xbf2019EE30456 \r\n\r\n2020MT60789\r\n")
    done = submission.call("zip", "birds")
    assert (done.code, done.err) == (0, "") and submission.checked == [("bird.py", "birds")]
    with zipfile.ZipFile(str(submission.zip)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
        assert archive.testzip() is None
    folder = "2019EE30456_2020MT60789"
    assert content == {
        f"{folder}/{folder}.pdf": submission.pdf["birds"].read_bytes(), f"{folder}/bird.py": b"print('a bird')\n",
        f"{folder}/group.txt": b"2019EE30456\n2020MT60789\n",
        f"{folder}/model_path.txt": b"https://drive.google.com/file/d/1a2b3c/view\n"}
    before = submission.zip.read_bytes()
    submission.zip.unlink()
    submission.call("zip", "birds")
    assert submission.zip.read_bytes() == before


def test_a_script_of_another_name_gets_the_name_that_graders_expect(submission):
    (submission.folder / "mine.py").write_text("pass\n")
    done = submission.call("zip", "digits", "--script", "mine.py", "--out", "d.zip",
                           "--report", submission.pdf["birds"])
    assert done.code == 0
    with zipfile.ZipFile("d.zip") as archive:
        assert archive.read("2019EE30456_2020MT60789/vae.py") == b"pass\n"


def edit(name, content):
    def change(place):
        path = place.pdf["birds"] if name == "report" else place.folder / name
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return change


@pytest.mark.parametrize("change, words", [
    (edit("group.txt", None), ["group.txt", "found: No such file"]),
    (edit("group.txt", "2019EE3045\n2020MT60789\n"), ["group.txt", "'2019EE3045'"]),
    (edit("group.txt", "2019EE30456 2020MT60789\n"), ["group.txt", "on each line"]),
    (edit("group.txt", "2019ee30456\n"), ["group.txt", "upper case"]),
    (edit("group.txt", "\n"), ["group.txt", "one or two entry numbers, found 0"]),
    (edit("group.txt", b"\xff\xfe2\x000\x00"), ["group.txt", "UTF-8"]),
    (edit("model_path.txt", None), ["model_path.txt", "the link"]),
    (edit("model_path.txt", "\nhttps://example.org/bird.pth\n"), ["model_path.txt", "empty line"]),
    (edit("model_path.txt", "bird.pth\n"), ["model_path.txt", "'bird.pth'", "https://"]),
    (edit("model_path.txt", "https:///bird.pth\n"), ["model_path.txt", "https:///bird.pth"]),
    (edit("model_path.txt", "https://[half/bird.pth\n"), ["model_path.txt", "https://[half"]),
    (edit("model_path.txt", "link: https://example.org\n"), ["model_path.txt", "nothing else"]),
    (edit("model_path.txt", "ftp://example.org/bird.pth\n"), ["model_path.txt", "ftp://"]),
    (edit("model_path.txt", (ROOT / "model_path.txt").read_bytes()), ["model_path.txt", "sample"]),
    (edit("report", None), ["2019EE30456_2020MT60789.pdf", "python -m handin report birds"]),
    (edit("report", "no PDF"), ["2019EE30456_2020MT60789.pdf", "expected a PDF"]),
    (edit("report", pdf_bytes("2019EE30456 2020MT60789", "b", "c", "d")), ["at most 3 pages, found 4"]),
    (edit("report", pdf_bytes("A report", "2019EE30456 2020MT60789")), ["first line", "'A report'"]),
    (edit("bird.py", None), ["bird.py", "the script"])])
def test_each_mistake_is_refused_with_one_line(submission, change, words):
    change(submission)
    refused(submission.call("zip", "birds"), *words)
    assert not submission.zip.exists()


def test_three_entries_and_one_twice_are_two_problems(submission):
    (submission.folder / "group.txt").write_text("2019EE30456\n2020MT60789\n2019EE30456\n")
    done = submission.call("zip", "birds")
    assert done.code == 2 and "found 3" in done.err and "twice" in done.err


def test_a_script_that_fails_the_quick_check_is_refused(submission):
    submission.rows = [{"check": "pre-trained weights", "status": "fail", "detail": "line 3: torchvision.models"},
                       {"check": "imports", "status": "warn", "detail": "line 4: cv2"}]
    done = submission.call("zip", "birds")
    assert done.code == 2 and done.err.count("\n") == 1 and "line 3: torchvision.models" in done.err
    assert "cv2" in done.out and not submission.zip.exists()


def test_all_problems_are_listed_and_the_earlier_zip_is_kept(submission):
    submission.zip.write_bytes(b"earlier")
    (submission.folder / "group.txt").write_bytes((ROOT / "group.txt").read_bytes())
    (submission.folder / "model_path.txt").write_text("nowhere\n")
    (submission.folder / "bird.py").unlink()
    done = submission.call("zip", "birds")
    assert done.code == 2 and done.err.count("\n") == 4
    assert all(word in done.err for word in ("sample 2021CS10001 2021CS10002", "nowhere", "bird.py", "10002.pdf"))
    assert submission.zip.read_bytes() == b"earlier"


def test_the_zip_never_replaces_what_goes_into_it(submission):
    for path in (submission.folder / "bird.py", submission.pdf["birds"], submission.folder / "group.txt"):
        before = path.read_bytes()
        refused(submission.call("zip", "birds", "--out", path), path.name, "a file of its own")
        assert path.read_bytes() == before


@pytest.mark.parametrize("part", pack.SCRIPTS)
def test_both_scripts_of_this_repository_pass_the_real_quick_check(part):
    pytest.importorskip("handin.grade")
    rows = pack.script_rows(ROOT / pack.SCRIPTS[part], part)
    assert rows and not [row for row in rows if row[1] == "fail"]
