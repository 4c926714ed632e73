"""Study 3, representations: the VQ-VAE's numerics, the mixture of latents, and the study from the command line."""
import dataclasses
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import images_of, read_page
from PIL import Image
from torch import nn

from studies import __main__ as command
from studies import data, engine, photo_models, representations, vq

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {"accuracies", "vae_loss", "reconstructions", "samples", "classifiers", "vq_codes", "vq_reconstructions"}
TINY = {"side": 16, "widths": (4, 8), "latent": 6, "vq_widths": (4, 8), "codes": 12, "code_width": 5, "mlp_width": 8,
        "mlp_epochs": 2, "epochs": 2, "batch": 20, "feature_steps": 12, "components": (1, 2)}


@pytest.fixture(scope="module")
def photos(bird_draw, tmp_path_factory):
    """300 drawn photos of three kinds, 120, 90 and 90, in folders."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    bird_draw(folder, {f"kind{kind}/{i}.png": kind for kind, n in enumerate((120, 90, 90)) for i in range(n)}, 3)
    return folder


@pytest.fixture(scope="module")
def studied(photos, tmp_path_factory):
    """The whole study in this process, two seeds, tiny networks."""
    folder = tmp_path_factory.mktemp("study") / "out"
    patch = pytest.MonkeyPatch()
    patch.setattr(representations, "QUICK", {**TINY, "epochs": 5, "mlp_epochs": 7})
    words = [str(photos), "--out", str(folder), "--quick", "--device", "cpu", "--seeds", "2", "--epochs", "2"]
    code = command.main(["representations", *words, "--signature", "drawn for a test"])
    yield types.SimpleNamespace(folder=folder, code=code, words=words,
                                results=json.loads((folder / "results.json").read_text()))
    patch.undo()


# ------------------------------------------------------------------------------------------------------------- numerics

def test_the_nearest_code_is_that_of_the_smallest_distance():
    draw = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(50, 4, generator=draw), torch.randn(7, 4, generator=draw)
    assert torch.equal(vq.nearest_codes(z, codebook), torch.cdist(z, codebook).argmin(1))


def test_perplexity_of_known_codes():
    assert vq.perplexity(torch.tensor([5, 5, 5, 5])) == pytest.approx(4)
    assert vq.perplexity(torch.tensor([9, 0, 0])) == pytest.approx(1)
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert vq.perplexity(torch.tensor([1, 3])) == pytest.approx(math.exp(entropy))


def _two_codes(decay=0.9):
    """A Quantiser of the codes (0, 0) and (4, 0), each with a count of 1."""
    quantiser = vq.Quantiser(2, 2, decay, dead_below=0.0)
    quantiser.codebook.copy_(torch.tensor([[0.0, 0], [4, 0]]))
    quantiser.sums.copy_(quantiser.codebook)
    quantiser.counts.fill_(1)
    return quantiser


def test_the_vq_loss_and_the_straight_through_gradient_are_those_worked_by_hand():
    model = vq.VQVAE(1, (2, 2), 2, 2)
    model.encoder, model.decoder, model.quantiser = nn.Identity(), nn.Identity(), _two_codes().eval()
    z = torch.tensor([1.0, 2, 3, -2]).view(2, 2, 1, 1).requires_grad_()  # nearest: (0, 0) to (1, 2), (4, 0) to (3, -2)
    output, commitment = model(z, torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(output.flatten(), torch.tensor([0.0, 0, 4, 0]).sigmoid())
    assert commitment.item() == pytest.approx((1 + 4 + 1 + 4) / 4)
    towards, = torch.autograd.grad(commitment, z, retain_graph=True)
    assert torch.allclose(towards.flatten(), 2 * torch.tensor([1.0, 2, -1, -2]) / 4)
    through, = torch.autograd.grad((output * torch.tensor([1.0, 2, 3, 4]).view(2, 2, 1, 1)).sum(), z)
    slope = torch.tensor([0.0, 0, 4, 0]).sigmoid() * (1 - torch.tensor([0.0, 0, 4, 0]).sigmoid())
    assert torch.allclose(through.flatten(), torch.tensor([1.0, 2, 3, 4]) * slope)
    assert "quantiser.codebook" in model.state_dict() and not list(model.quantiser.parameters())


def test_the_codebook_follows_by_moving_averages_worked_by_hand():
    quantiser = _two_codes(0.9)
    z = torch.tensor([[1.0, 2], [-1, 0], [3, 2]]).t().reshape(1, 2, 3, 1)  # two at the first code, one at the second
    quantised, index = quantiser(z, torch.zeros(1, dtype=torch.int64))
    assert index.flatten().tolist() == [0, 0, 1]
    assert torch.equal(quantised.flatten(2)[0].t(), torch.tensor([[0.0, 0], [0, 0], [4, 0]]))  # before it moved
    assert torch.allclose(quantiser.counts, torch.tensor([0.9 + 0.1 * 2, 0.9 + 0.1 * 1]))
    assert torch.allclose(quantiser.codebook[0], torch.tensor([0.0, 0.2]) / 1.1, atol=1e-6)
    assert torch.allclose(quantiser.codebook[1], torch.tensor([0.9 * 4 + 0.3, 0.2]) / 1.0, atol=1e-6)
    before = quantiser.codebook.clone()
    quantiser.eval()(z, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(before, quantiser.codebook)


def test_dead_codes_begin_again_as_encoder_outputs_drawn_from_the_seed_alone():
    z = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    rows = z.permute(0, 2, 3, 1).reshape(-1, 3)

    def revived(seed, global_seed):
        torch.manual_seed(global_seed)
        quantiser = vq.Quantiser(5, 3, decay=1.0, dead_below=0.1)
        quantiser.codebook[:3], quantiser.sums[:3], quantiser.counts[:3] = 9.0, 9.0, 1.0  # the last two are dead
        quantiser(z, torch.tensor([seed, 1, 2, 3]))
        return quantiser

    one, same, other = revived(7, 0), revived(7, 1), revived(8, 0)
    assert int(one.revived) == 2 and torch.equal(one.codebook, same.codebook)
    assert not torch.equal(one.codebook, other.codebook)
    assert torch.equal(one.codebook[:3], torch.full((3, 3), 9.0))
    for code in one.codebook[3:]:
        assert (rows - code).abs().sum(1).min() < 1e-6
    assert torch.equal(one.counts[3:], torch.full((2,), 16 / 5))
    fresh = vq.Quantiser(5, 3)
    fresh(z, torch.tensor([7, 1, 2, 3]))
    assert int(fresh.revived) == 5


def test_code_frequencies_are_counted_by_quarter():
    index = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2], [2, 2, 0, 0], [2, 2, 0, 0]]])
    expected = torch.tensor([1.0, 0, 0, 0, 0.75, 0.25, 0, 0, 1, 1, 0, 0]).sqrt()
    assert torch.allclose(vq.code_frequencies(index, 3), expected[None])


def test_photos_are_shifted_and_mirrored_as_told():
    x = torch.arange(2 * 3 * 5 * 5).float().view(2, 3, 5, 5)
    down, right, mirror = torch.tensor([2, 0]), torch.tensor([-1, 0]), torch.tensor([0, 1])
    found = photo_models.shifted_and_mirrored(x, down, right, mirror)
    padded = nn.functional.pad(x[:1], (2, 2, 2, 2), mode="reflect")
    assert torch.equal(found[0], padded[0, :, 4:9, 1:6]) and torch.equal(found[1], x[1].flip(2))


def test_the_mean_photo_and_the_variance_are_those_of_the_whole():
    pixels = torch.randint(256, (600, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    mean, variance = representations.mean_and_variance(pixels)
    whole = pixels.double() / 255
    assert mean.dtype == torch.float32 and torch.allclose(mean.double(), whole.mean(0), rtol=0, atol=1e-7)
    assert variance == pytest.approx(float(whole.var()), rel=1e-12)
    assert representations.mean_and_variance(torch.full_like(pixels, 255))[1] == 0


def test_the_codebook_learns_outside_autocast_where_there_is_one():
    x = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with vq.without_autocast("cpu"):
            assert (x @ x).dtype == torch.float32
    with vq.without_autocast("mps"):
        assert (x @ x).dtype == torch.float32


def test_averaging_samples_of_the_latent_tends_to_the_mean_image():
    model = types.SimpleNamespace(
        encoder=lambda x: torch.cat([x.flatten(1), torch.zeros(len(x), 12)], 1), decode=lambda z: z.view(-1, 3, 2, 2))
    x = torch.rand(300, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = dict(representations.averaged_reconstructions(model, x, (1, 5, 10), 0))
    for k, images in found.items():  # unit variance, so the squared error is 1 / k
        assert float(((images - x) ** 2).mean()) == pytest.approx(1 / k, rel=0.1), k
    again = dict(representations.averaged_reconstructions(model, x, (5,), 0))
    assert torch.equal(again[5], found[5])


def test_the_mixture_has_as_many_components_as_the_latents_and_its_samples_are_like_them():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=600)
    latents = torch.from_numpy(rng.normal(size=(600, 2)) * 0.3 + np.array([[-3.0, 0], [3, 1]])[kind]).float()
    settings = dataclasses.replace(representations.Settings(), components=(1, 2), latent=2)
    mixture, likelihood = representations.fit_mixture(latents, settings, 0)
    assert len(mixture.weights_) == 2 and likelihood[2] > likelihood[1]
    sources = representations.drawn_latents(mixture, 400, 0)
    drawn = sources["mixture"]
    assert drawn.shape == (400, 2) and torch.allclose(drawn.mean(0), latents.mean(0), atol=0.5)
    assert float(drawn[:, 0].abs().min()) > 1 and float(sources["N(0, I)"].std()) == pytest.approx(1, abs=0.1)
    assert sources["N(0, I)"].shape == (400, 2)


def test_accuracies_stand_beside_the_baseline_with_their_intervals():
    numbers = {"accuracy": {name: {"mean": 0.8, "sd": None} for name in representations.CLASSIFIERS}}
    found = representations.accuracies(numbers, 0.5, 10)
    assert list(found)[0] == "most frequent class" and found["most frequent class"][0] == 0.5
    assert found["photo, CNN"][1] == pytest.approx([0.4902, 0.9433], abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ training

def _small(**changed):
    return dataclasses.replace(representations.Settings(), **{**TINY, **changed})


def test_a_resumed_vqvae_and_its_classifier_reach_the_weights_of_uninterrupted_ones(photos, tmp_path, monkeypatch):
    settings = _small(epochs=3, mlp_epochs=3)
    train, test, _ = data.read_split([photos], settings.side, 3)

    def everything(folder, resume=False):
        bench = engine.open_bench(tmp_path / folder, "cpu", resume=resume, quiet=True)
        return representations.train_all(bench, settings, train, test, 0)

    whole, saved, left = everything("whole"), engine._save_checkpoint, [0]

    def stop(path, state):
        saved(path, state)
        if path.name == left[0] and state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_save_checkpoint", stop)
    for name in ("vqvae_seed0.pt", "mlp_codes_seed0.pt"):
        left[0] = name
        with pytest.raises(KeyboardInterrupt):
            everything("parts", name != "vqvae_seed0.pt")
    monkeypatch.undo()
    parts = everything("parts", True)
    assert parts["vae"].trained == 0 and parts["mlp_codes"].trained == 1
    for name, fit in whole.items():
        assert fit.kept == parts[name].kept and fit.curve("test", "loss") == parts[name].curve("test", "loss"), name
        for module, again in zip(fit.modules.values(), parts[name].modules.values()):
            for key, value in module.state_dict().items():
                assert torch.equal(value, again.state_dict()[key]), (name, key)
    assert [sorted(one) for one in whole["vqvae"].kept] == [["active", "perplexity", "revived"]] * 3


TWO = '''
import dataclasses, json, sys
from studies import data, engine, representations


def found(photos, folder, devices, changed):
    settings = dataclasses.replace(representations.Settings(), **changed)
    train, test, _ = data.read_split([photos], settings.side, 3)
    bench = engine.open_bench(folder, "cpu", devices, quiet=True)
    fits = representations.train_all(bench, settings, train, test, 0)
    quantiser = fits["vqvae"].modules["vqvae"].quantiser
    return ({name: fit.history for name, fit in fits.items()}, quantiser.codebook.tolist(), int(quantiser.revived),
            bench.leads)


if __name__ == "__main__":
    *rest, leads = found(sys.argv[1], sys.argv[2], 2, json.loads(sys.argv[3]))
    engine.leave()
    if leads:
        print(json.dumps(rest))
'''


def test_two_processes_have_the_losses_and_the_codebook_of_one(photos, tmp_path, environment):
    """Revival included: at the first step all codes are dead."""
    path, changed = tmp_path / "two.py", {**TINY, "batch": 21}  # of 11 and 10 rows
    path.write_text(TWO)
    words = [sys.executable, str(path), str(photos), str(tmp_path / "two"), json.dumps(changed)]
    process = subprocess.run(words, cwd=str(tmp_path), env={**environment, "PYTHONPATH": str(ROOT)},
                             capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr[-2000:]
    two, codebook_of_two, revived_of_two = json.loads(process.stdout.splitlines()[-1])
    names = {"__name__": "one"}
    exec(TWO, names)
    one, codebook, revived, _ = names["found"](photos, tmp_path / "one", 1, changed)
    assert revived == revived_of_two >= 12 and np.allclose(codebook, codebook_of_two, atol=1e-3)
    for name in one:
        for a, b in zip(one[name], two[name]):
            for part in ("train", "test"):
                assert b[part] == pytest.approx(a[part], rel=2e-3, abs=1e-4), (name, a["epoch"], part)


# ------------------------------------------------------------------------------------------------------------ the study

def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    assert studied.code == 0
    found, numbers = studied.results, studied.results["numbers"]
    assert found["data"]["train"] == 240 and found["data"]["held_out"] == 60
    assert set(numbers["accuracy"]) == {"cnn", "mlp_latents", "mlp_codes"}
    assert all(len(value["values"]) == 2 for value in numbers["accuracy"].values())
    assert found["accuracies"]["most frequent class"][0] == pytest.approx(24 / 60)
    assert all(low <= value <= high for value, (low, high) in found["accuracies"].values())
    mse = [numbers["vae"][key]["mean"] for key in ("1", "5", "10")]
    assert mse[0] > mse[1] > mse[2] > 0
    fid = numbers["fid"]["learnt here"]
    assert {"N(0, I)", "mixture", "latents of photos", "floor"} < set(fid) and fid["n"]["mean"] == 60
    assert set(numbers["mixture"]["log_likelihood"]) == {"1", "2"}
    assert 1 <= numbers["vqvae"]["perplexity"]["mean"] <= numbers["vqvae"]["active"]["mean"] <= 12
    assert [len(rows) for rows in found["codes_by_epoch"].values()] == [2, 2]
    assert {len(rows) for seed in found["history"].values() for rows in seed.values()} == {2}  # as --epochs says
    with Image.open(str(studied.folder / "figures" / "samples.png")) as image:  # 100 of each, of 60 photos held out
        assert image.height > 10 * 16 and image.width > 20 * 16
    for name in PICTURES:
        with Image.open(str(studied.folder / "figures" / f"{name}.png")) as image:
            assert np.asarray(image.convert("L")).std() > 5, name
    assert {path.name for path in (studied.folder / "checkpoints").iterdir()} == {"features.pt"} | {
        f"{name}_seed{seed}.pt" for name in ("vae", "cnn", "vqvae", "mlp_latents", "mlp_codes") for seed in (0, 1)}
    text, tags = read_page(studied.folder / "report.html")
    assert len(images_of(tags)) == len(PICTURES) and all(len(image["alt"]) > 40 for image in images_of(tags))
    assert "249.12" in text and "not comparable" in text and "100 %, of one class" in text
    weak = found["features"]["accuracy"] < (1 + found["real"]["majority"]) / 2
    assert ("so that difference, decides little here" in text) is weak
    assert "two of 60 images" in text and "on those it learnt from" in text and "a weight of 0.2" in text


def test_a_finished_study_is_not_trained_again_and_another_length_is_refused(studied, monkeypatch, capsys):
    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(engine.Batch, "__init__", fail)
    assert command.main(["representations", *studied.words, "--resume"]) == 0
    again = json.loads((studied.folder / "results.json").read_text())
    assert again["numbers"] == studied.results["numbers"]
    assert command.main(["representations", *studied.words, "--resume", "--epochs", "9"]) == 2
    assert "epochs" in capsys.readouterr().err


def test_inception_features_add_a_table_beside_the_published_figure(studied, monkeypatch):
    def features(images):
        x = images if images.is_floating_point() else images.float() / 255
        return x.mean((2, 3))

    monkeypatch.setattr(representations.metrics, "inception_features", lambda *_: features)
    assert command.main(["representations", *studied.words, "--resume", "--inception", "weights.pth"]) == 0
    found = json.loads((studied.folder / "results.json").read_text())["numbers"]["fid"]
    assert set(found) == {"learnt here", "Inception"} and found["Inception"]["n"]["mean"] == 60
    assert found["Inception"]["mixture"]["mean"] > 0 and len(found["Inception"]["mixture"]["values"]) == 2
    assert "published, 1,000 other photos" in (studied.folder / "report.html").read_text(encoding="utf-8")


def test_sources_without_two_classes_or_weights_that_are_none_give_one_line(photos, tmp_path, capsys):
    (tmp_path / "weights").write_text("none")
    for words, expected in (([photos / "kind0"], "two classes"), ([tmp_path / "none"], "nothing there"),
                            ([photos, "--inception", tmp_path / "weights"], "weights: expected")):
        assert command.main(["representations", *map(str, words), "--out", str(tmp_path / "out"), "--device",
                             "cpu"]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
