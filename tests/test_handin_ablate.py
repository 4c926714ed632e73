"""python -m handin ablate: variants really differ, the table is that of the runs, a second call resumes."""
import json
import statistics

import pytest
import torch

from handin.report import ablate

CPU, WIDTHS = torch.device("cpu"), (64, 128, 256, 512)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, bird_draw):
    folder = tmp_path_factory.mktemp("photos")
    bird_draw(folder, {f"{kind}/{i}.jpg": kind for kind in range(3) for i in range(14)})
    return folder


@pytest.fixture(scope="module")
def read(photos):
    return ablate.read_photos(str(photos), None, 32)


@pytest.fixture
def command(photos, tmp_path, handin):
    """command(*words): the finished command, and the content of ablation.json."""
    def call(*words):
        done = handin("ablate", photos, "--image-size", 32, "--device", "cpu", "--out", tmp_path, *words)
        return done, json.loads((tmp_path / "ablation.json").read_text())
    return call


def test_every_variant_changes_what_there_is_to_change():
    fields = {field.name for field in ablate.dataclasses.fields(ablate.bird.Config)}
    for name, changes in ablate.VARIANTS.items():
        for key, value in changes.items():
            if key != "last":
                assert getattr(ablate.bird.Config if key in fields else ablate.bird, key) != value, (name, key)
    assert set(ablate.DEFAULT_VARIANTS) <= set(ablate.VARIANTS)


@pytest.mark.parametrize("name, norm, widths, loaded", [
    ("no batch normalization", False, WIDTHS, 1), ("half as wide", True, (32, 64, 128, 256), 1),
    ("no early stopping", True, WIDTHS, 1), ("last epoch, not the best", True, WIDTHS, 0)])
def test_a_variant_has_its_constants_and_the_best_or_last_weights(name, norm, widths, loaded, read, monkeypatch):
    seen, weights = [], []
    monkeypatch.setattr(ablate.bird.BirdClassifier, "load_state_dict", lambda model, state: weights.append(state))
    ablate.train_variant(read, name, 0, 1, 32, CPU, lambda: seen.append((ablate.bird.BATCH_NORM, ablate.bird.WIDTHS)))
    assert seen == [(norm, widths)] and len(weights) == loaded
    assert (ablate.bird.BATCH_NORM, ablate.bird.WIDTHS) == (True, WIDTHS)  # put back


def test_what_is_scored_took_no_part_in_training(read):
    assert not set(read.train_idx.tolist()) & set(read.test_idx.tolist())
    assert len(read.train_idx) + len(read.test_idx) == 42 and len(read.test_idx) == 8


def test_a_second_call_trains_only_what_is_missing(command, monkeypatch):
    trained, real = [], ablate.train_variant
    monkeypatch.setattr(ablate, "train_variant", lambda photos, name, seed, *rest: trained.append((name, seed))
                        or real(photos, name, seed, *rest))
    assert command("--epochs", 1, "--variants", "no dropout")[0].code == 0
    assert trained == [("baseline", 0), ("no dropout", 0)]
    done, found = command("--epochs", 1, "--variants", "no dropout", "--seeds", 2)
    assert done.code == 0 and trained[2:] == [("baseline", 1), ("no dropout", 1)]
    rows = found["rows"]
    assert [row["variant"] for row in rows] == ["baseline", "no dropout"]
    for row in rows:
        for key in ("accuracy", "f1"):
            values = [run[key] for run in found["runs"] if run["variant"] == row["variant"]]
            assert len(values) == 2 and row[key] == pytest.approx(statistics.mean(values))
            assert row[f"{key}_sd"] == pytest.approx(statistics.stdev(values))
    assert f" | {rows[1]['f1']:.4f} ± {rows[1]['f1_sd']:.4f} | " in done.out and "On 8 photos" in done.out
    done, _ = command("--epochs", 2, "--variants", "no dropout")  # of other epochs
    assert done.code == 2 and "found another" in done.err


def test_the_time_is_kept_and_what_is_left_is_said(command, monkeypatch):
    found = {"accuracy": 0.5, "f1": 0.5, "epochs": 3, "minutes": 1.0}
    monkeypatch.setattr(ablate, "train_variant", lambda *words: found)
    monkeypatch.setattr(ablate, "affordable_epochs", lambda *words: 3)
    ticks = iter(range(0, 10 ** 6, 60))
    monkeypatch.setattr(ablate.time, "monotonic", lambda: next(ticks))
    done, results = command("--minutes", 5)
    assert done.code == 1 and 1 <= len(results["runs"]) < len(ablate.DEFAULT_VARIANTS) and "remain" in done.err
    while done.code:
        done, results = command("--minutes", 5)
    assert len(results["runs"]) == len(ablate.DEFAULT_VARIANTS) and results["epochs"] == 3


@pytest.mark.parametrize("seconds, expected", [(10 ** 9, ablate.bird.Config.epochs), (0.0, 1)])
def test_epochs_are_those_that_the_time_allows(read, seconds, expected):
    assert ablate.affordable_epochs(read, 4, seconds, 32, CPU) == expected


@pytest.mark.parametrize("words", [
    ["--variants", "no sense"], ["--minutes", 0], ["--image-size", 7], ["nowhere"], ["--epochs", 1]])
def test_bad_input_is_one_line(command, handin, tmp_path, words):
    (tmp_path / "ablation.json").write_text("[]")
    done = handin("ablate", tmp_path / "nowhere") if words == ["nowhere"] else command(*words)[0]
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert ("expected an earlier ablation" in done.err) == (words == ["--epochs", 1])
