"""The shared modules of studies/: losses, measures, training, figures, the report, the command."""
import csv
import dataclasses
import math
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import small_studies
import small_training
import torch
from refusals import Bomb

from common.errors import InputError
from studies import __main__ as command
from studies import autoencoder, data, losses, metrics, report, training

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def drawn(draw):
    """60 drawn Images of three classes."""
    labels = np.repeat([0, 1, 2], 20)
    pixels = torch.from_numpy(draw(labels, 5))[:, None]
    return data.Images(pixels, torch.from_numpy(labels), ["bar", "ring", "cross"], [])


def test_an_old_torch_gets_the_usual_adam(monkeypatch):
    """torch before 2.4 refuses to step in one pass on a CPU."""
    def old(parameters, fused=False, make=torch.optim.Adam, **options):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be CUDA, floating point Tensor")
        return make(parameters, **options)

    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    made = [training.adam(iter(weights[:1]), lr=0.1)]
    monkeypatch.setattr(torch.optim, "Adam", old)
    made.append(training.adam(iter(weights[1:]), lr=0.1))
    for weight, optimizer in zip(weights, made):
        weight.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        optimizer.step()
    assert torch.allclose(*weights, rtol=1e-12) and weights[0][0] != 1


def test_losses_agree_with_the_distributions_of_torch():
    from torch.distributions import Bernoulli, Normal, kl_divergence
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    q = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(losses.kl_divergence(mean, log_variance), expected, atol=1e-5)
    logits, x = torch.randn(5, 1, 3, 3), torch.rand(5, 1, 3, 3).round()
    expected = -Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(losses.binary_cross_entropy(logits, x), expected, atol=1e-5)
    assert losses.mse_per_image(torch.zeros(2, 1, 2), torch.tensor([[[1.0, 3]], [[0, 0]]])).tolist() == [5, 0]
    z = losses.reparameterize(mean.repeat(20_000, 1, 1), log_variance)
    assert torch.allclose(z.mean(0), mean, atol=0.1) and torch.allclose(z.std(0), q.stddev, rtol=0.05)


def test_fid_is_the_formula_of_its_moments():
    from scipy.linalg import sqrtm
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 2, rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    s, t = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert metrics.fid(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-6)
    assert metrics.fid(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_measures_agree_with_values_worked_by_hand():
    line = torch.arange(5.0)[:, None]  # radii by k = 1: all 1
    fake = torch.tensor([[0.2], [0.5], [4.9], [5.2], [90]])  # radii 0.3, the last one's 84.8
    assert metrics.precision_recall(line, fake, k=1) == (pytest.approx(0.6), pytest.approx(0.2))
    assert metrics.precision_recall(line, line + 0.1, k=1) == (1, 1)
    points = torch.tensor([[0.0, 0], [3, 4], [0, 4]])
    assert metrics.mean_pairwise_l2(points) == pytest.approx((5 + 4 + 3) / 3)
    assert metrics.mean_pairwise_l2(points, most=2) == pytest.approx(5)
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 1
    assert metrics.sharpness(dot) == pytest.approx((16 + 4) / 9)
    assert metrics.majority_baseline(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 0])) == 0.25
    z, y = torch.tensor([[0.0], [1], [10], [11]]), torch.tensor([0, 0, 1, 1])
    assert metrics.silhouette(z, y) == pytest.approx((2 * (1 - 1 / 10.5) + 2 * (1 - 1 / 9.5)) / 4)
    assert metrics.silhouette(z, y * 0) is None and metrics.silhouette(z, torch.arange(4)) is None
    assert metrics.knn_accuracy(z, y, torch.tensor([[2.0], [9], [9.5]]), torch.tensor([0, 1, 0]), k=1) == 2 / 3
    assert metrics.proportion_interval(8, 10) == pytest.approx([0.490162, 0.943318], abs=1e-6)  # Wilson 1927
    assert metrics.proportion_interval(0, 10)[0] == 0 and metrics.proportion_interval(10, 10)[1] == 1
    assert metrics.summarise([{"a": {"b": 1.0, "c": None}}, {"a": {"b": 3.0, "c": 2.0}}]) == {"a": {
        "b": {"mean": 2, "sd": math.sqrt(2), "values": [1, 3]}, "c": {"mean": None, "sd": None, "values": [None, 2]}}}
    assert metrics.summarise([1.0])["sd"] is None


def test_the_features_of_the_fid_learn_classes_or_transformations_and_state_their_accuracy(drawn, tmp_path):
    study = types.SimpleNamespace(
        run=training.Run(tmp_path, "cpu"), train=drawn, test=drawn, settings=types.SimpleNamespace(feature_steps=30),
        args=types.SimpleNamespace(seed=0))
    extract, about = metrics.train_feature_extractor(study, batch_size=20)
    assert about["accuracy"] > 0.9 and about["task"] == "the 3 classes" and about["guessing"] == 1 / 3
    assert about["interval"][0] < about["accuracy"] <= about["interval"][1] and about["weak"] is False
    fakes = {"noise": torch.rand(70, 1, 28, 28), "same": drawn.floats()}
    found = metrics.fids(extract, drawn, drawn, fakes)
    assert found["training images"] < 1e-3 and found["same"] < 1e-3 and found["noise"] > 1
    study.train = study.test = dataclasses.replace(drawn, labels=-torch.ones(60), classes=[])
    study.settings.feature_steps = 2
    _, about = metrics.train_feature_extractor(study, batch_size=20)
    assert "transformations" in about["task"] and about["guessing"] == 1 / 8


def rows(model):
    """The history without its durations."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in model.history]


def same_weights(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Net that was trained for 40 epochs without interruption."""
    return small_training.train(tmp_path_factory.mktemp("whole"), 40)


def test_a_training_that_was_killed_goes_on_to_the_weights_of_an_uninterrupted_one(whole, tmp_path, environment):
    checkpoint = tmp_path / "checkpoints/net.ckpt"
    process = subprocess.Popen([sys.executable, small_training.__file__, str(tmp_path), "40"],
                               env={**environment, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    said = process.communicate()[1]
    kept = torch.load(str(checkpoint), weights_only=True)["history"]
    assert process.returncode == -signal.SIGKILL and 1 <= len(kept) < 40, said
    assert len(kept) >= said.count("epoch") * 5 - 1  # of every fifth epoch a line is printed before it is saved
    resumed = small_training.train(tmp_path, 40, resume=True)
    assert resumed.history[:len(kept)] == kept and rows(resumed) == rows(whole) and same_weights(resumed, whole)
    assert resumed.seconds == sum(row["seconds"] for row in resumed.history) and not resumed.training
    again = small_training.train(tmp_path, 40, resume=True)  # nothing is left to do
    assert again.history == resumed.history and same_weights(again, whole)
    anew = small_training.train(tmp_path, 2)
    assert rows(anew) == rows(whole)[:2] and anew.history[0]["seconds"] != kept[0]["seconds"]
    small_training.train(tmp_path, 4, resume=True)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["net.csv"]  # one table, resumed or not
    with open(str(tmp_path / "logs/net.csv"), newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


def test_without_resume_what_was_there_does_not_stay(tmp_path, monkeypatch):
    small_training.train(tmp_path, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["net.ckpt"]
    monkeypatch.setattr(small_training.Net, "losses", lambda *_: {}["stop"])
    with pytest.raises(KeyError):
        small_training.train(tmp_path, 40)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    small_training.train(tmp_path, 2)
    checkpoint = tmp_path / "checkpoints/net.ckpt"
    whole, bombed = checkpoint.read_bytes(), torch.load(str(checkpoint), weights_only=True)
    bombed["about"]["bomb"] = Bomb(tmp_path / "exploded")
    every, held, few = small_training.images(99, 1), small_training.images(31, 2), small_training.images(60, 1)
    inverted = dataclasses.replace(every, pixels=255 - every.pixels)
    relabelled = dataclasses.replace(every, labels=2 - every.labels)
    torch.save(bombed, str(tmp_path / "bombed"))
    for options, content, word in (
            ({"lr": 0.02}, whole, "expected lr 0.02, found 0.01"),
            ({"sets": (few, held)}, whole, "expected images 60, found 99"),
            ({"metadata": {"encoder_epochs": 7}}, whole, "expected encoder_epochs 7, found None"),
            *(({"sets": sets}, whole, "expected the images and the split that it was trained on, found others")
              for sets in ((inverted, held), (relabelled, held), (every, few))),
            ({"seed": 6}, whole, "expected seed 6, found 5"),
            ({"epochs": 1}, whole, "at most 1 epochs, found 2"),
            *(({}, bad, "expected a checkpoint") for bad in (
                whole[:-200], b"", pickle.dumps(Bomb(tmp_path / "exploded")), (tmp_path / "bombed").read_bytes()))):
        checkpoint.write_bytes(content)
        ending = "" if content is not whole else "; --overwrite starts over"
        with pytest.raises(InputError, match=f"net.ckpt: .*{word}.*{ending}$") as caught:
            small_training.train(tmp_path, resume=True, **{"epochs": 2, **options})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and not (tmp_path / "exploded").exists()


def test_losses_that_diverge_and_flags_that_are_not_taken_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="^net: expected losses that are numbers, found .* nan.* in epoch 1; the t"):
        small_training.train(tmp_path, 3, lr=1e30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    few = small_training.images(20, 1)
    for flag, value in (("device", "warp"), ("device", "cuda"), ("devices", 999), ("num_nodes", 2),
                        ("precision", "nonsense")):
        with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}.*: expected .*found"):
            training.Run(tmp_path, **{"device": "cpu", "overwrite": True, flag: value}).fit(
                "net", small_training.Net(), few, epochs=1, batch_size=9)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: expected a folder"):
        training.Run(tmp_path / "file", "cpu").fit("net", small_training.Net(), few, epochs=1, batch_size=9)


def test_a_folder_with_other_results_is_refused_or_replaced_and_foreign_files_stay(tmp_path):
    small_training.train(tmp_path, 1, overwrite=False)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/old.png").write_text("of another variant")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new folder, found study.json, checkpoints, logs, figures"):
        small_training.train(tmp_path, 1, overwrite=False)
    (tmp_path / "thesis/figures").mkdir(parents=True)
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="expected a new folder or one of a study, found figures of"):
            training.Run(tmp_path / "thesis", "cpu", study="small", **flags)
    with pytest.raises(InputError, match="expected results of other, found those of small; --overwrite replaces them"):
        training.Run(tmp_path, "cpu", resume=True, study="other")
    assert (tmp_path / "figures/old.png").exists()
    training.Run(tmp_path, "cpu", overwrite=True, study="other")
    assert (tmp_path / "figures/old.png").exists()  # nothing is deleted before the data have been read
    small_training.train(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints", "logs", "notes.txt", "study.json", "thesis"]


def test_ranks_in_the_environment_of_one_process_are_refused_and_slurm_variables_ignored(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=f"{name}=1 in the env.*; unset {name} or"):
            patch.setenv(name, "1")
            training.Run(tmp_path, "cpu")
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive", "SLURM_JOB_ID": "7", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert len(small_training.train(tmp_path, 1).history) == 1


def test_threads_are_the_idle_cores_or_as_many_as_asked(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(training.torch, "get_num_threads", lambda: 8)
        for load, devices, threads in ((0.2, 1, 8), (5.6, 1, 2), (40.0, 1, 1), (0.0, 2, 4)):
            monkeypatch.setattr(training.os, "getloadavg", lambda load=load: (load, 0, 0), raising=False)
            assert training.idle_cores(devices) == threads
        monkeypatch.undo()
        assert training.Run(tmp_path, "cpu", threads=1).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_trends_count_what_exceeds_the_noise():
    def seeds(mean, sd):
        return {"mean": mean, "sd": sd, "values": [0, 0, 0]}

    for values, expected in (((1, 2, 3), "rises"), ((3, 2.5, 1), "falls"), ((1, 1.005, 1.008), "is flat"),
                             ((1, 3, 1.5), "is not monotonic"), ((0.0, 0.0), "is flat"),
                             ([seeds(1, 1), seeds(2, 1), seeds(1.5, 1)], "is flat"),
                             ([seeds(1, 0.1), seeds(2, 0.1), seeds(1.95, 0.1)], "rises"),
                             ([seeds(9, 0.1), seeds(2, 0.1)], "falls")):
        assert report.trend(values) == expected, values
    assert report.join_numbers([seeds(0.01553, 1), 12.34]) == "0.0155, 12.3"
    assert report.trend((0.25, seeds(0.26, 0.1))) == "is flat" and report.trend((0.25, seeds(0.5, 0.1))) == "rises"
    claims = [report.Claim("a", "b", agrees) for agrees in (True, False, None)]
    for quick, held_out, paragraphs in ((False, 100, 0), (True, 100, 1), (False, 99, 1)):
        section = report.conclusions(claims, {"quick": quick, "data": {"held_out": held_out}})
        assert [row[2] for row in section.tables[0].rows] == ["yes", "no", "undecided"]
        assert len(section.paragraphs) == paragraphs


def test_what_was_trained_in_bfloat16_is_measured_in_float32(tmp_path):
    net = training.Run(tmp_path, "cpu", precision="bf16-mixed").fit(
        "net", small_training.Net(), small_training.images(30, 1), epochs=2, batch_size=9)
    found = training.map_batches(net.body, small_training.images(5, 2).pixels, batch_size=2)
    assert found.shape == (5, 3) and found.dtype == torch.float32 and len(net.curve("train_loss")) == 2


def test_numbers_are_written_with_their_spread():
    def leaf(mean, sd, *values):
        return {"mean": mean, "sd": sd, "values": values}

    for value, text in ((162.0, "162.0"), (0.0472, "0.04720"), (12_345, "12,345"), (123456.0, "123,456"), (None, "–"),
                        (0.0, "0.000"), (math.nan, "NaN"), (leaf(1.5, 0.25, 1.25, 1.75), "1.500 ± 0.25"),
                        (leaf(1.5, None, 1.5), "1.500"), (leaf(62.0, None, 62), "62"), (leaf(None, None, None), "–"),
                        (leaf(None, None, None, 2.0), "–")):
        assert report.number(value) == text
    assert report.percent(0.5, [0.4, 0.6]) == "50.0 % (40.0 to 60.0)" and report.percent(0.123) == "12.3 %"


def test_words_and_data_that_are_not_taken_are_one_line_and_help_shows_an_example(capsys, tmp_path):
    np.save(str(tmp_path / "bare.npy"), np.random.default_rng(0).integers(255, size=(11, 8, 8), dtype=np.uint8))
    bare = [str(tmp_path / "bare.npy"), "--out", str(tmp_path), "--device", "cpu"]
    for words, word in (*(([name, *bare], "at least 10 images to train on, found 8") for name in (
        "autoencoder", "fashion", "gan", "representations")),
                        (["none"], "invalid choice: 'none'"), (["autoencoder", "x"], "--out"),
                        (["autoencoder", "x", "--out", "y", "--nope"], "unrecognized arguments: --nope"),
                        (["autoencoder", "x", "--out", "y", "--seeds", "0"], "a number from 1 to 2147483647, found 0"),
                        (["autoencoder", "x", "--out", "y", "--epochs", "x"], "invalid whole number value: 'x'"),
                        (["autoencoder", "x", "--out", "y", "--variant", "x"], "bce"),
                        (["autoencoder", "x", "--out", "y", "--strategy", "ddp_spawn"], "'auto', 'ddp'"),
                        (["autoencoder", "x", "--out", ""], "argument --out: expected a name, found nothing"),
                        (["autoencoder", "", "--out", "y"], "argument DATA: expected a name, found nothing"),
                        (["autoencoder", "x", "--out", "y", "--resume", "--overwrite"], "not allowed with argument"),
                        (["gan", str(tmp_path), "--out", str(tmp_path / "a")], "expected a folder outside the data"),
                        (["autoencoder", "none.npz", "--out", "y"], "none.npz: expected")):
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1, error
    assert command.main([]) == 2 and "autoencoder" in capsys.readouterr().err
    for words, word in ((["--help"], "autoencoder"), (["autoencoder", "--help"], autoencoder.EXAMPLE)):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0 and word in capsys.readouterr().out


def test_two_processes_that_fail_end_with_one_line(draw, tmp_path, environment):
    source, quick = small_studies.write_drawn(draw, tmp_path), {"feature_steps": 1, "epochs": 2, "lr": 1e30}
    process = small_studies.process(quick, "autoencoder", source, tmp_path, environment, "--devices", "2")
    lines = process.communicate(timeout=600)[1].splitlines()  # when no process is left that could write more
    assert process.returncode == 2 and len(lines) == 3 and "features: epoch 2/2" in lines[1], lines
    assert lines[2].startswith("ae_described_seed0: expected losses that are numbers, found")


@pytest.mark.parametrize("name", command.STUDIES)
def test_the_fewest_images_that_are_accepted_give_a_report(name, draw, tmp_path):
    source = small_studies.write_drawn(draw, tmp_path, 14)
    code, said = small_studies.study({"feature_steps": 2}, name, source, tmp_path / "out", "--epochs", "2")
    assert code == 0, said
    found = small_studies.left(tmp_path / "out").results
    assert (found["data"]["train"], found["data"]["held_out"]) == (10, 4) and found["conclusions"]
