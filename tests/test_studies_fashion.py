"""Study 2, fashion: from the command line to the report, and what it adds to the floor."""
import dataclasses
import io
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studies import __main__ as command
from studies import data, engine, fashion, figures, losses, metrics

ROOT = Path(__file__).resolve().parent.parent
STILLS = {"loss_curves", "reconstructions", "samples", "frozen_mean", "beta_curves", "beta_images", "beta_samples",
          "beta_latents"}
MOVING = {"beta_0.1", "beta_0.5", "beta_1.0"}
TINY = {**fashion.QUICK, "feature_steps": 12, "scatter_points": 40, "diversity_images": 60}
TWO = """
import dataclasses, json, sys
from studies import data, engine, fashion


def history(drawings, folder, devices):
    # Small steps down the gradient: those of Adam, at first g / |g|, make much of the rounding of a small g.
    settings = dataclasses.replace(fashion.Settings(), optimizer="SGD", rate=1e-5, batch=35)
    train, test, _ = data.read_split([drawings], settings.side, 1)
    bench = engine.open_bench(folder, "cpu", devices, quiet=True)
    fitted = fashion.train_one(bench, "vae", settings, train, test, 0, settings.latent, 0.5, 3)
    return fitted.history if bench.leads else None


if __name__ == "__main__":
    rows = history(sys.argv[1], sys.argv[2], 2)
    engine.leave()
    if rows:
        print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def drawings(draw, tmp_path_factory):
    """300 drawn images of four kinds, .npz."""
    path, labels = tmp_path_factory.mktemp("drawings") / "drawings.npz", np.arange(300) % 4
    np.savez(str(path), data=draw(labels, 9), labels=labels)
    return path


@pytest.fixture(scope="module")
def studied(drawings, tmp_path_factory):
    """The whole study in this process, two seeds; Inception features stand in for."""
    folder, asked = tmp_path_factory.mktemp("study") / "out", []
    words = [str(drawings), "--out", str(folder), "--quick", "--epochs", "2", "--device", "cpu", "--seeds", "2"]
    words += ["--inception", "weights.pth", "--signature", "drawn for a test"]

    def study(*more):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fashion, "QUICK", TINY)
            patch.setattr(metrics, "inception_features", lambda *words: asked.append(words) or (
                lambda images: engine.mapped(lambda x: x.flatten(1)[:, ::97], images)))
            return command.main(["fashion", *words, *more])

    code = study()
    return types.SimpleNamespace(folder=folder, code=code, asked=list(asked), study=study,
                                 results=json.loads((folder / "results.json").read_text()))


@pytest.mark.parametrize("kernel", (3, 4))
def test_the_network_is_that_of_the_description(kernel):
    settings = dataclasses.replace(fashion.Settings(), kernel=kernel)
    assert (settings.optimizer, settings.rate, settings.batch, settings.epochs, settings.latent) == (
        "Adam", 1e-3, 128, 25, 16)
    assert (settings.betas, settings.beta_classes, settings.beta_epochs) == ((0.1, 0.5, 1.0), (0, 1, 7), 20)
    model = fashion.ConvVAE(settings).eval()
    convolutions = [layer for layer in model.modules() if hasattr(layer, "kernel_size")]
    assert [(layer.in_channels, layer.out_channels, layer.stride) for layer in convolutions] == [
        (1, 32, (2, 2)), (32, 64, (2, 2)), (64, 32, (2, 2)), (32, 1, (2, 2))]
    assert model.to_posterior.in_features == model.from_latent.out_features == 64 * 7 * 7
    assert model.to_posterior.out_features == 32 and fashion.ConvVAE(settings, 2).to_posterior.out_features == 4
    x = torch.rand(3, 1, 28, 28)
    logits, mean, log_variance = model(x, torch.zeros(3, 16))
    assert logits.shape == x.shape and torch.equal(mean, model.encode(x))
    assert torch.equal(logits.sigmoid(), model.decode(mean)) and torch.equal(model.reconstruct(x), model.decode(mean))
    assert torch.allclose(model.spread(x) ** 2, log_variance.exp())


def test_the_layout_in_memory_changes_no_value():
    with engine.seeded(1):
        model = fashion.ConvVAE(fashion.Settings())
    x, noise = torch.rand(8, 1, 28, 28), torch.randn(8, 16)
    plain = model(x, noise)
    model.to(memory_format=torch.channels_last)
    for one, other in zip(plain, model(x.to(memory_format=torch.channels_last), noise)):
        assert torch.allclose(one, other, atol=1e-4)
    y = model.encoder(x.to(memory_format=torch.channels_last))
    assert y.permute(0, 2, 3, 1).flatten(1).data_ptr() == y.data_ptr()  # no copy before the linear layer


def test_the_step_gives_the_weighted_sum_of_its_terms():
    class Known(torch.nn.Module):
        def forward(self, x, noise):
            assert noise.shape == (4, 2)
            return torch.zeros_like(x), torch.ones(4, 2), torch.zeros(4, 2)

    batch = types.SimpleNamespace(x=torch.rand(4, 1, 5, 5), normal=lambda latent: torch.randn(4, latent))
    found = fashion.vae_step(2, 0.5)({"vae": Known()}, batch)
    assert found["reconstruction"].item() == pytest.approx(25 * np.log(2), rel=1e-5)
    assert found["kl"].item() == 1 and found["loss"].item() == pytest.approx(25 * np.log(2) + 0.5, rel=1e-5)


def _images(labels, names):
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    return data.Images(pixels, torch.tensor(labels), names, ["a: broken"])


def test_classes_are_the_asked_ones_or_the_first_three():
    names = list("abcdefgh")
    images = _images([0, 7, 3, 1, 7, 2, 5], names)
    assert fashion.common_classes(images, images, (0, 1, 7)) == [0, 1, 7]
    chosen = fashion.of_classes(images, [0, 1, 7])
    assert chosen.labels.tolist() == [0, 2, 1, 2] and chosen.pixels[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert chosen.classes == ["a", "b", "h"] and chosen.skipped == []
    assert fashion.common_classes(images, _images([2, 7, 3, 5], names), (0, 1, 7)) == [2, 3, 5]
    assert fashion.common_classes(images, _images([2, 7], names), (0, 1, 7)) == [2, 7]


def test_a_frozen_mean_moves_as_far_as_sigma_says():
    class Line(torch.nn.Module):
        latent = 3

        def encode(self, x):
            return x.flatten(1)[:, :3]

        def decode(self, z):
            return z

    image = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    found = fashion.around_the_mean(Line(), image, (0.1, 1.0), 500, 0)
    mean = torch.tensor([10, 20, 30]) / 255
    assert torch.allclose(10 * (found[0.1] - mean), found[1.0] - mean, atol=1e-5)
    assert (found[1.0] - mean).std().item() == pytest.approx(1, abs=0.05)
    assert metrics.summarise([{"a": {"b": 1.0}}, {"a": {"b": 3.0}}])["a"]["b"]["mean"] == 2


def test_the_axes_hold_every_point_of_every_frame_and_the_prior():
    frames = [np.array([[0.0, 0.0], [9.0, 1.0]]), np.array([[-1.0, -4.0]])]
    (left, right), (low, high) = figures.fixed_limits(frames)
    assert left < -2 and right > 9 and low < -4 and high > 2 and right - left == pytest.approx(high - low)
    assert figures.fixed_limits([np.zeros((1, 2))]) == ((-2.12, 2.12), (-2.12, 2.12))
    figure = figures.latent_frame(frames[0], [0, 1], ["a", "b"], ((left, right), (low, high)),
                                  {"original": torch.zeros(3, 1, 4, 4)}, "epoch 1")
    assert figure.axes[0].get_xlim() == (left, right) and figure.axes[0].get_title() == "epoch 1"


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    assert studied.code == 0
    found, numbers = studied.results, studied.results["numbers"]
    assert found["data"]["train"] == 240 and found["data"]["held_out"] == 60 and found["seeds"] == [0, 1]
    assert found["beta"]["classes"] == ["0", "1", "2"] and found["beta"]["held_out"] == 45
    assert set(numbers["beta"]) == {"0.1", "0.5", "1.0"} and set(numbers["vae"]["frozen"]) == {"0.1", "0.5", "1.0"}
    frozen = [each["one"]["mean"] for each in numbers["vae"]["frozen"].values()]
    assert frozen == sorted(frozen) and frozen[0] > 0
    assert set(numbers["vae"]["fid"]) == {"trained", "untrained", "Inception"}
    assert [words[0] for words in studied.asked] == ["weights.pth"] * 2
    for part in ("during", "after", "held_out"):
        terms = numbers["vae"]["losses"][part]
        assert terms["loss"]["mean"] == pytest.approx(terms["reconstruction"]["mean"] + terms["kl"]["mean"], rel=1e-5)
    last = found["history"]["1"]["vae"][-1]
    assert last["epoch"] == 2 and numbers["vae"]["losses"]["held_out"]["loss"]["values"][1] == last["test"]["loss"]
    assert found["history"]["0"]["0.1"][0]["train"]["kl"] > 0 and numbers["vae"]["losses"]["after"]["loss"]["sd"] > 0
    assert {path.name for path in (studied.folder / "checkpoints").iterdir()} == {"features.pt", *(
        f"{name}_seed{seed}.pt" for name in ("vae", "beta0.1", "beta0.5", "beta1.0") for seed in (0, 1))}


def test_every_picture_is_drawn_and_the_gifs_have_a_frame_an_epoch(studied):
    assert {path.name for path in (studied.folder / "figures").iterdir()} == {
        *(f"{name}.png" for name in STILLS), *(f"{name}.gif" for name in MOVING)}
    for name in STILLS:
        with Image.open(str(studied.folder / "figures" / f"{name}.png")) as image:
            assert np.asarray(image.convert("L")).std() > 5, name
    for name in MOVING:
        with Image.open(str(studied.folder / "figures" / f"{name}.gif")) as image:
            assert image.n_frames == 2, name
            first = np.asarray(image.convert("L"))
            image.seek(1)
            assert (first != np.asarray(image.convert("L"))).any(), name


def test_all_frames_of_a_gif_have_the_same_axes(monkeypatch):
    points = data.Images(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), ["a", "b"], [])
    watched = types.SimpleNamespace(points=points, originals=points.pixels)
    frames = [{"means": scale * torch.eye(2), "reconstructions": points.pixels} for scale in (1, 9, 4)]
    drawn, draw_frame = [], figures.latent_frame
    monkeypatch.setattr(figures, "latent_frame", lambda *words: drawn.append(words[3]) or draw_frame(*words))
    fashion.latent_gif(frames, watched, 0.5)
    assert len(drawn) == 3 and len(set(drawn)) == 1 and min(high for _, high in drawn[0]) > 9


def test_the_report_says_what_was_measured_and_makes_no_claim_for_other_data(studied):
    text = (studied.folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<img") == len(STILLS | MOVING) and text.count("data:image/gif") == 3
    assert "60 held-out images" in text and "mean ± standard deviation of 2 seeds" in text and "untrained" in text
    assert studied.results["published"] is None and "242.31" not in text and "209.47" not in text
    garments = {**studied.results, "published": fashion.PUBLISHED}
    pictures = dict.fromkeys(STILLS | MOVING)
    tables = [table for section in fashion.sections(garments, pictures) for table in section.tables]
    assert "240.46" in str(tables[0].rows[0]) and "242.31" in str(tables[0].rows[2])
    assert any("210.55" in str(table.rows) and "8.76" in str(table.rows) for table in tables)


def test_resuming_trains_no_more_and_gives_the_same_numbers_and_frames(studied, monkeypatch):
    frame = "beta_0.5.gif"
    before = (studied.folder / "figures" / frame).read_bytes()
    monkeypatch.setattr(engine, "epoch_batches", lambda n, batch, order=None: [] if order else list(
        torch.arange(n).split(batch)))  # nothing to train on: the held-out images alone are scored
    assert studied.study("--resume") == 0
    again = json.loads((studied.folder / "results.json").read_text())
    assert again["numbers"] == studied.results["numbers"]
    assert (studied.folder / "figures" / frame).read_bytes() == before


def test_an_interrupted_training_goes_on_to_the_weights_and_frames_of_an_uninterrupted_one(draw, tmp_path):
    labels = torch.arange(60) % 3
    images = data.Images(torch.from_numpy(draw(labels.numpy(), 3))[:, None], labels, list("abc"), [])
    settings = dataclasses.replace(fashion.Settings(), batch=20)
    watched = fashion.Watched(images, dataclasses.replace(settings, scatter_points=10))
    assert watched.originals.shape == (9, 1, 28, 28) and len(watched.points) == 10

    def train(folder, resume=False, each_epoch=watched):
        bench = engine.open_bench(tmp_path / folder, "cpu", resume=resume, quiet=True)
        return fashion.train_one(bench, "beta0.5", settings, images, images, 3, 2, 0.5, 3, each_epoch)

    def stop(modules, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return watched(modules, epoch)

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("parts", each_epoch=stop)
    resumed = train("parts", resume=True)
    assert resumed.trained == 2 and [row["test"] for row in resumed.history] == [row["test"] for row in whole.history]
    for one, other in zip(resumed.kept, whole.kept):
        assert one["means"].shape == (10, 2) and torch.equal(one["means"], other["means"])
        assert one["reconstructions"].dtype == torch.uint8
        assert torch.equal(one["reconstructions"], other["reconstructions"])
    with Image.open(io.BytesIO(fashion.latent_gif(whole.kept, watched, 0.5))) as gif:
        assert gif.n_frames == 3
    bench = engine.open_bench(tmp_path / "whole", "cpu", quiet=True)
    model = whole.modules["vae"]
    after = fashion.scored_after(bench, whole, dataclasses.replace(settings, latent=2, beta=0.5), images, 3, 30)
    assert after["loss"] == pytest.approx(after["reconstruction"] + 0.5 * after["kl"], rel=1e-5)
    some = data.at_most(images, 30, 3).pixels.float() / 255
    mean, log_variance = model.posterior(some)
    assert after["kl"] == pytest.approx(losses.kl_to_standard_normal(mean, log_variance).mean().item(), rel=1e-4)


def test_two_processes_give_the_losses_of_one(drawings, tmp_path, environment):
    (tmp_path / "two.py").write_text(TWO)
    words = [sys.executable, str(tmp_path / "two.py"), str(drawings), str(tmp_path / "two")]
    process = subprocess.run(words, cwd=str(tmp_path), env={**environment, "PYTHONPATH": str(ROOT)},
                             capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr[-2000:]
    names = {"__name__": "one"}
    exec(TWO, names)
    alone, together = names["history"](drawings, tmp_path / "one", 1), json.loads(process.stdout.splitlines()[-1])
    assert alone[2]["test"]["loss"] < alone[0]["test"]["loss"]
    for one, two in zip(alone, together):
        for part in ("train", "test"):
            assert two[part] == pytest.approx(one[part], rel=2e-4), (one["epoch"], part)


def test_the_diversity_of_real_images_is_that_of_all_classes():
    labels = torch.arange(4).repeat_interleave(60)
    images = data.Images((labels * 60).byte().view(-1, 1, 1, 1).expand(-1, 1, 28, 28), labels, list("abcd"), [])
    found = fashion.measure_real(images, images, 60, 0)["diversity"]
    assert found == pytest.approx(metrics.mean_pairwise_l2(images.pixels / 255), rel=0.15)


def test_bad_input_gives_one_line_and_exit_code_2(drawings, tmp_path, capsys):
    np.savez(str(tmp_path / "one.npz"), data=np.zeros((90, 28, 28), np.uint8), labels=np.zeros(90))
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    np.savez(str(tmp_path / "each.npz"), data=np.zeros((260, 28, 28), np.uint8), labels=np.arange(260))
    for words, expected in (([tmp_path / "none.npz"], "nothing there"), ([tmp_path / "one.npz"], "two classes"),
                            ([tmp_path / "each.npz"], "both trained on and held out, found 0 of 260"),
                            ([drawings, "--inception", tmp_path / "weights.pth"], "weights.pth: expected"),
                            ([drawings, "--inception", tmp_path / "none.pth"], "none.pth: expected")):
        assert command.main(["fashion", *map(str, words), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1 and "found" in error
    assert not (tmp_path / "out").exists()
