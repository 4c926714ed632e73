"""`python -m handin grade --submissions`: each student gets a row and a mark, whatever was handed in."""
import csv
import json
import os
import time
from pathlib import Path

import peers
import pytest
from peers import write_all

from common.errors import InputError
from handin.grading import classroom, marks, outputs, similar, submissions

ROOT = Path(__file__).resolve().parent.parent
ENTRY = "2021CS10123"
BIRD, VAE = peers.BIRD, peers.VAE
WHOLE = {f"{ENTRY}/bird.py": BIRD, f"{ENTRY}/group.txt": ENTRY, f"{ENTRY}/model_path.txt": "https://a.example/b"}


@pytest.fixture(scope="module")
def pdf():
    """Bytes of a report of the birds by ENTRY."""
    typst = pytest.importorskip("typst")
    return typst.compile(f"Asha Rao ({ENTRY}) \\ A convolutional network for birds, with Grad-CAM".encode())


def rows_of(path):
    with open(str(path), newline="") as file:
        return {row["submission"]: row for row in csv.DictReader(file)}


def test_whatever_is_handed_in_is_a_submission(tmp_path):
    """And what the operating system or the grader has added is none."""
    write_all(tmp_path, {"student 1/bird.py": BIRD, "student 1/figures.zip": "no script", "student2/Bird.py": BIRD,
                         "student3/bird (1).py": BIRD, "student4/work.rar": "", "student5/a.7z": "",
                         "student6/bird.ipynb": "{}", "student8/deep/er/bird.py": BIRD, "student9/._x.zip": "",
                         "loose.ipynb": "{}", "notes.txt": "", ".DS_Store": "", "__MACOSX/x.zip": "",
                         "grades_logs/x.txt": "", "section/a.zip": WHOLE, "section/b.zip": WHOLE,
                         "section/two  spaces.zip": WHOLE, "section/two spaces.zip": WHOLE})
    (tmp_path / "student7").mkdir()
    found = submissions.find_submissions(tmp_path, [tmp_path / "grades_logs"])
    assert set(found) == {
        "student 1", "student2", "student3", "student4/work.rar", "student5/a.7z", "student6", "student7",
        "student8/deep/er", "student9", "loose.ipynb", "section/a.zip", "section/b.zip", "section/two spaces.zip",
        "section/two spaces.zip (2)"}
    assert len({submission.path for submission in found.values()}) == len(found)


def test_who_handed_in_and_when_is_read_from_exports(tmp_path):
    """Of Gradescope, also below the top folder, with broken entries and without folders; of Moodle; of Canvas."""
    write_all(tmp_path, {"g/submission_1/bird.py": BIRD, "g/submission_metadata.yml": """
submission_1:
  :submitters:
  - :name: Asha Rao
    :sid: 17
    :email: asha@x.example
  - :name:
    :email: 5
  :created_at: 2024-11-06 18:30:00.5 +05:30
submission_2: !ruby/hash:Some::Class
  :submitters:
  - :name: 12
submission_3:
submission_4:
  :submitters: 5
../submission_5:
""", "Ravi Iyer_4711_assignsubmission_file_/bird.py": BIRD, "iyerravi_LATE_81_92_submission.zip": WHOLE})
    found = submissions.find_submissions(tmp_path)
    first = found["g/submission_1"]
    assert [(one.name, one.email, one.sid) for one in first.students] == [
        ("Asha Rao", "asha@x.example", "17"), ("", "5", "")]
    assert first.time.startswith("2024-11-06 ")
    assert not found["g/submission_2"].path.exists() and found["g/submission_2"].students[0].name == "12"
    assert found["g/submission_3"].students == found["g/submission_4"].students == () and len(found) == 6
    ids = {name: [(one.name, one.id) for one in found[name].students] for name in found if not name.startswith("g/")}
    assert ids == {"Ravi Iyer_4711_assignsubmission_file_": [("Ravi Iyer", "4711")],
                   "iyerravi_81": [("iyerravi", "81")]}
    (tmp_path / "g" / "submission_metadata.yml").write_text("a: [")
    with pytest.raises(InputError, match="expected Gradescope's metadata"):
        submissions.find_submissions(tmp_path)


@pytest.mark.parametrize("members, words", [
    ({"x/notes.txt": ""}, "expected one script, bird.py or vae.py, found x/notes.txt"),
    ({"x/bird.ipynb": "{}"}, "hand in the script as .py"), ({}, "found no files"),
    ({"../../evil.py": ""}, "a path outside its folder"), ({"..\\evil.py": ""}, "outside its folder"),
    ({"x/bomb.txt": bytes(3_000_000)}, "of 3 MB")])
def test_what_cannot_be_graded_says_why(members, words, tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "MAX_BYTES", 10 ** 6)
    path = write_all(tmp_path, {"a.zip": members}) / "a.zip"
    with pytest.raises(InputError, match=words), submissions.open_submission(submissions.Submission(path)) as folder:
        submissions.find_scripts(folder)


@pytest.mark.parametrize("name", ["Bird.py", "bird (1).py", "bird_final.py", "main.py", "deep\\er\\bird.py"])
def test_a_script_of_another_name_is_found(name, tmp_path):
    """By its name, or by what it writes; in a zip of Windows PowerShell 5, too."""
    inner = {name: BIRD, "helper.py": "x = 1", f"deep/er/old/{name}": BIRD}
    write_all(tmp_path, {"inner.zip": inner, "a.zip": {"x/inner.zip": inner}})
    for zipped, prefix in (("inner.zip", ""), ("a.zip", "inner/")):
        with submissions.open_submission(submissions.Submission(tmp_path / zipped)) as folder:
            assert submissions.find_scripts(folder) == {"birds": folder / (prefix + name.replace("\\", "/"))}


def test_one_part_that_is_unclear_costs_the_other_nothing(tmp_path):
    found = submissions.find_scripts(write_all(tmp_path, {"a/vae.py": VAE, "b/vae.py": VAE, "main.py": BIRD}))
    assert found == {"birds": tmp_path / "main.py", "digits": "expected one vae.py, found a/vae.py, b/vae.py"}


def test_forms_and_report_are_checked(tmp_path, pdf):
    place = write_all(tmp_path, {**WHOLE, "report.pdf": pdf}) / ENTRY
    def read(**files):
        write_all(tmp_path, files)
        return submissions.check_files(tmp_path, place / "bird.py", "birds", True)
    assert read() == submissions.SubmissionFiles((ENTRY,), "https://a.example/b", "", "", "")
    form = read(**{f"{ENTRY}/data.npz": "", f"{ENTRY}/group.txt": "2021cs10124"})
    assert form.entries == ("2021CS10124",) and "upper case" in form.layout and "data.npz" in form.layout
    assert form.report_missing == "" and "in the first line" in form.report_text  # costs no points
    assert "expected a PDF" in read(**{"report.pdf": "%PDF broken"}).report_missing
    (tmp_path / "report.pdf").unlink()
    assert "found none" in read().report_missing


@pytest.mark.parametrize("content, entries", [
    ("\ufeff2021cs10123, 2021CS10124;<script>\r\n../x =1+1\n".encode(), ["2021CS10123", "2021CS10124"]),
    ("2021CS10123\r\n".encode("utf-16"), ["2021CS10123"])])
def test_entry_numbers_are_read_however_they_are_written(content, entries, tmp_path):
    assert submissions.find_entries(write_all(tmp_path, {"group.txt": content})) == entries


def test_submitted_models_are_found_where_they_lie(tmp_path):
    alone, flat, models = tmp_path / "submission_1", tmp_path / "flat", tmp_path / "models" / "2021CS10001"
    write_all(tmp_path, dict.fromkeys((  # whose flat/bird.pth is, of two zips, nobody knows
        "submission_1/bird.pth", "submission_1/submission.zip", "flat/a/bird.pth", "flat/a.zip", "flat/b.zip",
        "flat/bird.pth", "models/2021CS10001/bird.pth"), ""))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    def find(path, part="birds", entries=(), models=None):
        return submissions.find_models(path if path.is_dir() else unpacked, path, part, entries, models)
    assert find(alone / "submission.zip") == [alone / "bird.pth"] == find(alone)
    assert find(flat / "a.zip") == [flat / "a" / "bird.pth"]
    assert find(flat / "b.zip") == [] == find(alone, "digits")
    assert find(flat / "b.zip", entries=["2021CS10001"], models=models.parent) == [models / "bird.pth"]
    write_all(unpacked, {"bird.pth": ""})
    assert find(flat / "b.zip") == [unpacked / "bird.pth"]


def test_a_class_gets_rows_marks_and_pages_and_resumes(peer_birds, tmp_path, handin, pdf):
    """First quick, then in full, then in part."""
    folder, target = tmp_path / "class", tmp_path / "out" / "grades.csv"
    write_all(folder, {
        "a.zip": {**WHOLE, f"{ENTRY}/{ENTRY}.pdf": pdf}, "c.zip": b"PK\x03\x04 broken", "both/bird.py": BIRD,
        "b.zip": {"x/bird.py": BIRD.replace("Predicted_Label", "label"), "x/group.txt": ENTRY}, "both/vae.py": VAE,
        "submission_metadata.yml": "both:\n  :submitters:\n  - :name: Asha <Rao>\n    :email: a@x.example\n"
                                   "gone:\n  :submitters:\n  - :name: Ravi\n"})
    command = ["grade", "--submissions", folder, "--csv", target, "--jobs", 2]
    data = ["--birds", *peer_birds]
    assert handin(*command, "--quick").code == 1
    assert all(row["grader_version"].startswith("quick") and not row["mark"] for row in rows_of(target).values())
    assert handin(*command, *data).code == 1
    rows = rows_of(target)
    assert list(rows) == ["a.zip", "b.zip", "both", "c.zip", "gone"]
    # The row of `both` that is read is that of its vae.py, for which there are no data.
    assert [row["status"] for row in rows.values()] == [*["graded with deductions"] * 2, *["cannot be graded"] * 3]
    assert (rows["a.zip"]["entries"], rows["a.zip"]["average_f1"]) == (ENTRY, "1")
    # 100 points less 10 % each for the seed and the model file of a peer without torch
    assert rows["a.zip"]["mark"] == "80" and rows["b.zip"]["mark"] == "63"  # no report, and the header
    assert f"entry number {ENTRY} also in b.zip" in rows["a.zip"]["warnings"]
    for name, words in (("b.zip", "bird.csv header: expected Predicted_Label, found 'label'"),
                        ("c.zip", "c.zip: expected a zip"), ("gone", "the export lists this submission without them")):
        assert words in rows[name]["failed"], rows[name]
    page = (target.parent / "report.html").read_text()
    assert "Asha &lt;Rao&gt;" in page and "<td>bird.csv header</td>" in page and "birds: average F1" in page
    log, feedback = (target.parent / rows["b.zip"][what] for what in ("log", "feedback"))
    assert "Predicted_Label" in log.read_text() and rows["b.zip"]["log"] in page
    assert "to_csv(path, index=False)" in feedback.read_text() and "63.0" in feedback.read_text()
    with open(str(target.parent / "grades_moodle_birds.csv")) as file:
        assert [row["Grade"] for row in csv.DictReader(file) if row["Email address"] == "a@x.example"] == ["72"]

    state = json.loads((target.parent / "grades.json").read_text())
    state.pop("b.zip")
    write_all(target.parent, {"grades.json": json.dumps(state),
                              "overrides.csv": "entry,mark,why\nb.zip,50,agreed\nnobody,1,\n"})
    done = handin(*command, *data, "--regrade", "c.zip")
    assert done.code == 1 and done.err.count("graded before") == 3
    assert {line.split(":")[0] for line in done.out.splitlines()} == {"b.zip", "c.zip"}
    assert "overrides.csv: expected one row for nobody, found 0" in done.err
    row = rows_of(target)["b.zip"]
    assert (row["mark"], row["status"], row["deductions"]) == ("50", "graded by hand", "agreed")
    done = handin(*command, "--quick")
    assert done.code == 1 and done.err.count("graded before") == 4  # of `both`, vae.py has not been graded in full
    write_all(folder, {"c.zip": WHOLE})  # handed in again
    done = handin(*command, *data)
    assert done.code == 1 and "c.zip: birds" in done.out and rows_of(target)["c.zip"]["average_f1"] == "1"
    done = handin(*command, *data, "--regrade", "nobody")
    assert done.code == 2 and "--regrade: expected submissions or entry numbers" in done.err


def grade_or_die(path, data, place):
    """Stands in for grade_submission: a submission named "twice" kills its worker always, "once" the first time."""
    tries = Path(place, f"{path}.tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    time.sleep(0.3)  # no grading is over before the last one's result has been fetched
    if path == "twice" or path == "once" and len(tries.read_text()) == 1:
        os.kill(os.getpid(), 9)
    return [{"name": path}]


def test_a_worker_that_dies_loses_nothing_but_its_own_submission(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "grade_submission", grade_or_die)
    monkeypatch.setattr(classroom, "PROGRESS_SECONDS", 0.1)
    work = {name: (name, str(tmp_path)) for name in ("a", "once", "twice", "b", "c", "d")}
    results = list(classroom.in_parallel(work, {}, 2, None))
    found = {name: result for name, result in results if name}
    assert (None, None) in results and len(found) == 6
    assert {name for name, result in found.items() if isinstance(result, Exception)} == {"twice"}
    assert all(found[name] == [{"name": name}] for name in ("a", "b", "c", "d", "once"))
    tries = {path.stem: len(path.read_text()) for path in tmp_path.glob("*.tries")}
    assert tries == {"a": 1, "b": 1, "c": 1, "d": 1, "once": 2, "twice": 2}


def test_a_running_scheduler_does_the_work(tmp_path, monkeypatch):
    from distributed import LocalCluster
    monkeypatch.setattr(classroom, "grade_submission", grade_or_die)
    work = {"a": ("a", str(tmp_path))}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False) as cluster:
        assert dict(classroom.in_parallel(work, {}, 1, cluster.scheduler_address)) == {"a": [{"name": "a"}]}
    with pytest.raises(InputError, match="--scheduler: expected the address"):
        list(classroom.in_parallel(work, {}, 1, "tcp://127.0.0.1:9"))


def make_result(**changes):
    values = {"part": "birds", "entries": [ENTRY], "scores": {"average_f1": 0.8}, **changes}
    return classroom.make_result(submissions.Submission(Path("x")), **values)


def failed(*checks):
    return {"rows": [{"part": "birds", "check": check, "status": "fail", "value": "", "detail": "x"}
                     for check in checks]}


@pytest.mark.parametrize("changes, value, status", [
    ({}, 82, "graded"), ({"report_missing": "no PDF"}, 72, "graded"), ({"report_text": "no name"}, 82, "graded"),
    (failed("bird.csv header", "retrained: bird.csv header"), 73.8, "graded with deductions"),
    (failed("no model zoo", "no pre-trained weights"), 41, "graded with deductions"),
    (failed("test"), 82, "graded"), ({"scores": {}}, 0, "cannot be graded"), ({"time": "?"}, 82, None),
    ({"time": "2024-11-06 18:00:00+05:30"}, 82, "graded"),
    ({"time": "2024-11-06 12:30:01 UTC"}, 73.8, "graded with deductions"),
    ({"time": "2024-11-08T12:00:00Z"}, 65.6, "graded with deductions"), ({"time": "2024-11-20 00:00:00"}, 0, None)])
def test_marks(changes, value, status, tmp_path):
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(marks.RUBRIC.read_text().replace("deadline: null ", "deadline: 2024-11-06 18:00:00 +05:30 "))
    found = marks.compute_mark(marks.read_rubric(rubric), "birds", make_result(**changes))
    assert found.value == pytest.approx(value) and status in (found.status, None)


@pytest.mark.parametrize("part", ["birds", "digits"])
def test_the_shipped_rubric_has_100_points_for_each_part(part):
    found = marks.compute_mark(marks.read_rubric(), part, make_result(scores=dict.fromkeys(outputs.SHOWN, 1.0)))
    assert (found.value, found.maximum, found.deductions) == (100, 100, [])


@pytest.mark.parametrize("old, new", [
    ("report: 10", "report: -1"), ("full: 1}", "full: 0}"), ("ssim:", "sim:"), ("points: 90", "points: .nan"),
    ("max_deduction: 50", "max_deduction: x"), ("birds:", "birds: ["), ("late: [10, 20]", "late: 10"),
    ('"*": 10', '"*": no'), ("deadline: null", "deadline: 2024-11-06 18:00:00")])
def test_a_broken_rubric_is_named(old, new, tmp_path):
    path = write_all(tmp_path, {"rubric.yaml": marks.RUBRIC.read_text().replace(old, new)}) / "rubric.yaml"
    with pytest.raises(InputError, match="rubric.yaml: expected"):
        marks.read_rubric(path)


@pytest.mark.parametrize("text", ["entry,mark\na,1\n", "entry,mark,why\na,many,\n", "entry,mark,why,part\na,1,,fish\n",
                                  "entry,mark,why\na,-1,\n"])
def test_broken_overrides_are_named(text, tmp_path):
    with pytest.raises(InputError, match="overrides.csv"):
        marks.read_overrides(write_all(tmp_path, {"overrides.csv": text}) / "overrides.csv")


def test_a_mark_of_a_teacher_counts_for_the_part_that_it_names():
    rubric = marks.read_rubric()
    rows = outputs.table_rows({"a": [make_result(), make_result(part="digits")]}, rubric)
    assert "found 2; add a column part" in outputs.apply_overrides(rows, [(ENTRY, "", 33.0, "")], rubric)[0]
    assert outputs.apply_overrides(rows, [(ENTRY, "digits", 33.0, "oral exam")], rubric) == []
    assert [row["mark"] for row in rows] == [82, 33]
    rows = outputs.table_rows({"a.rar": [make_result(part="", scores={}, problem="expected a zip")]}, rubric)
    assert "expected a column part" in outputs.apply_overrides(rows, [("a.rar", "", 12.0, "")], rubric)[0]
    assert outputs.apply_overrides(rows, [("a.rar", "birds", 12.0, ""), ("a.rar", "digits", 13.0, "")], rubric) == []
    assert [(row["part"], row["mark"], row["max_mark"]) for row in rows] == [
        ("", "", ""), ("birds", 12, 100), ("digits", 13, 100)]
    rows = [{**row, "submission": "a", "log": "", "feedback": ""} for row in rows]
    assert "birds: mark" in outputs.report_page(rows, [])


def test_each_student_has_a_row_for_the_upload_and_none_without_identity(tmp_path):
    students = [{"name": name, "email": f"{name}@x.example", "sid": str(i), "id": str(40 + i)}
                for i, name in enumerate(("asha", "ravi"))]
    results = {"asha=ravi/zip": [make_result(students=students, layout=f"expected {ENTRY}")], "c": [make_result()]}
    rubric, table = marks.read_rubric(), tmp_path / "grades.csv"
    assert outputs.write_outputs(table, results, rubric, [], True, [("asha=ravi/zip", "c", 0.9)], results) == []
    def read(name):
        with open(str(tmp_path / name)) as file:
            return list(csv.DictReader(file))
    assert [(row["Email"], row["Total Score"]) for row in read("grades_gradescope_birds.csv")] == [
        ("asha@x.example", "82"), ("ravi@x.example", "82"), ("", "82")]
    assert [row["Identifier"] for row in read("grades_moodle_birds.csv")] == ["Participant 40", "Participant 41", ""]
    points, *rows = read("grades_canvas_birds.csv")
    assert points["birds (bird.py)"] == "100" and [row["ID"] for row in rows] == ["40", "41", ""]
    texts = [table.read_text(), (tmp_path / "report.html").read_text(),
             *(path.read_text() + path.name for path in (tmp_path / "grades_feedback").iterdir())]
    assert not any(word in text for text in texts for word in ("asha", "ravi", ENTRY))
    assert {row["name"] for row in read("grades_names.csv")} == {"asha=ravi/zip", "c"}
    assert outputs.write_outputs(table, {**results, "d": [make_result()]}, rubric, [], False, (), results) == [
        f"{ENTRY}: no mark to upload, because there are several birds submissions: c, d"]
    assert "asha, ravi" in table.read_text() and len(read("grades_gradescope_birds.csv")) == 2


def test_no_cell_is_taken_for_a_formula():
    assert list(map(outputs.csv_cell, ("=1+1", "a\nb", 0.5))) == ["'=1+1", "a b", "0.5"]


def test_a_renamed_copy_is_found_and_another_solution_is_not():
    source, other = (ROOT / "bird.py").read_text(), (ROOT / "vae.py").read_text()
    renamed = source.replace("photos", "images").replace("config", "settings").replace("model", "net")
    ((one, two, share),) = similar.similar_pairs({"a": source, "b": other, "c": renamed})
    assert (one, two) == ("a", "c") and share > 0.9


def test_the_page_sorts_and_searches(tmp_path, browser):
    """In a browser, 1,280 px wide: nothing is cut off."""
    results = {f"group {i} {word}": [make_result(scores={"average_f1": 0.1 * i}, **failed("x" * 80), entries=[])]
               for i, word in ((3, "three"), (11, "eleven"), (7, "seven"))}
    outputs.write_outputs(tmp_path / "grades.csv", results, marks.read_rubric(), [], False, (), results)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    for column, clicks, first in (("submission", 1, "group 3"), ("mark", 2, "group 11")):
        page.locator("#class th", has_text=column).click(click_count=clicks)
        assert page.evaluate("document.querySelector('#class tbody tr').cells[0].textContent").startswith(first)
    page.locator("#search").fill("GROUP seven")
    assert page.locator("#class tbody tr:visible").count() == 1
