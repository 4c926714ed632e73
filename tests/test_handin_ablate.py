"""python -m handin ablate: variants really differ, the table is that of the runs, a second call resumes."""
import json
import statistics

import pytest
import torch

from handin.__main__ import main
from handin.report import ablate


@pytest.fixture(scope="module")
def photos(tmp_path_factory, bird_draw):
    folder = tmp_path_factory.mktemp("photos")
    bird_draw(folder, {f"{kind}/{i}.jpg": kind for kind in range(3) for i in range(14)})
    return folder


@pytest.fixture
def command(photos, tmp_path):
    def call(*words):
        return main(["ablate", str(photos), "--image-size", "32", "--device", "cpu", "--out", str(tmp_path / "figures"),
                     *words])
    return call


def _results(tmp_path):
    return json.loads((tmp_path / "figures" / "ablation.json").read_text())


def test_every_variant_changes_what_there_is_to_change():
    fields = {field.name for field in ablate.dataclasses.fields(ablate.bird.Config)}
    for name, changes in ablate.VARIANTS.items():
        for key, value in changes.items():
            if key == "last":
                continue
            assert getattr(ablate.bird.Config if key in fields else ablate.bird, key) != value, (name, key)
    assert set(ablate.USUAL) <= set(ablate.VARIANTS)


def test_constants_are_those_of_the_variant_while_it_trains_and_are_put_back(photos):
    read, seen = ablate.read_photos(str(photos), None, 32), []
    for name in ("no batch normalization", "half as wide"):
        ablate.train_variant(read, name, 0, 1, 32, torch.device("cpu"),
                             lambda: seen.append((ablate.bird.BATCH_NORM, ablate.bird.WIDTHS)))
    assert seen == [(False, (64, 128, 256, 512)), (True, (32, 64, 128, 256))]
    assert (ablate.bird.BATCH_NORM, ablate.bird.WIDTHS) == (True, (64, 128, 256, 512))


def test_the_weights_that_are_scored_are_the_best_or_the_last(photos, monkeypatch):
    read, loaded = ablate.read_photos(str(photos), None, 32), []
    monkeypatch.setattr(ablate.bird.BirdClassifier, "load_state_dict", lambda model, state: loaded.append(state))
    for name, expected in (("baseline", 1), ("no early stopping", 1), ("last epoch, not the best", 0)):
        loaded.clear()
        ablate.train_variant(read, name, 0, 2, 32, torch.device("cpu"))
        assert len(loaded) == expected, name


def test_what_is_scored_took_no_part_in_training(photos):
    read = ablate.read_photos(str(photos), None, 32)
    assert not set(read.train_idx.tolist()) & set(read.test_idx.tolist())
    assert len(read.train_idx) + len(read.test_idx) == 42 and len(read.test_idx) == 8


def test_a_second_call_trains_only_what_is_missing(command, tmp_path, capsys, monkeypatch):
    trained, real = [], ablate.train_variant

    def counted(photos, name, seed, *rest):
        trained.append((name, seed))
        return real(photos, name, seed, *rest)

    monkeypatch.setattr(ablate, "train_variant", counted)
    assert command("--epochs", "1", "--variants", "no dropout") == 0
    assert trained == [("baseline", 0), ("no dropout", 0)]
    assert command("--epochs", "1", "--variants", "no dropout", "--seeds", "2") == 0
    assert trained[2:] == [("baseline", 1), ("no dropout", 1)]
    rows, runs = (_results(tmp_path)[key] for key in ("rows", "runs"))
    assert [row["variant"] for row in rows] == ["baseline", "no dropout"]
    for row in rows:
        for key in ("accuracy", "f1"):
            values = [run[key] for run in runs if run["variant"] == row["variant"]]
            assert len(values) == 2 and row[key] == pytest.approx(statistics.mean(values))
            assert row[f"{key}_sd"] == pytest.approx(statistics.stdev(values))
    out = capsys.readouterr().out
    assert f" | {rows[1]['f1']:.4f} ± {rows[1]['f1_sd']:.4f} | " in out and "On 8 photos" in out
    assert command("--epochs", "2", "--variants", "no dropout") == 2  # of other epochs
    assert "found another" in capsys.readouterr().err


def test_the_time_is_kept_and_what_is_left_is_said(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablate, "train_variant", lambda *words: {"accuracy": 0.5, "f1": 0.5, "epochs": 3,
                                                                  "minutes": 1.0})
    monkeypatch.setattr(ablate, "affordable_epochs", lambda *words: 3)
    ticks = iter(range(0, 10 ** 6, 60))
    monkeypatch.setattr(ablate.time, "monotonic", lambda: next(ticks))
    assert command("--minutes", "5") == 1
    assert 1 <= len(_results(tmp_path)["runs"]) < len(ablate.USUAL) and "remain" in capsys.readouterr().err
    while command("--minutes", "5"):
        pass
    assert len(_results(tmp_path)["runs"]) == len(ablate.USUAL) and _results(tmp_path)["epochs"] == 3


@pytest.mark.parametrize("seconds, expected", [(10 ** 9, ablate.bird.Config.epochs), (0.0, 1)])
def test_epochs_are_those_that_the_time_allows(photos, seconds, expected):
    read = ablate.read_photos(str(photos), None, 32)
    assert ablate.affordable_epochs(read, 4, seconds, 32, torch.device("cpu")) == expected


def test_bad_input_is_one_line(command, photos, tmp_path, capsys):
    assert main(["ablate", str(photos), "--variants", "no sense"]) == 2
    assert main(["ablate", str(tmp_path / "nowhere")]) == 2
    assert command("--minutes", "0") == 2
    assert command("--image-size", "7") == 2
    assert len(capsys.readouterr().err.splitlines()) == 4
    (tmp_path / "figures" / "ablation.json").parent.mkdir(exist_ok=True)
    (tmp_path / "figures" / "ablation.json").write_text("[]")
    assert command("--epochs", "1") == 2
    assert "expected an earlier ablation" in capsys.readouterr().err
