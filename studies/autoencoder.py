"""Study 1: an autoencoder (AE) and a variational autoencoder (VAE) [1] of the same layers, side by side.

Described: 784-128-64-32 and back, ReLU between, sigmoid at the end; the AE minimises the squared error, the VAE the
squared error + KL, each summed over an image; Adam 1e-3, batches of 128, 50 epochs, MNIST.
--variant bce: binary cross-entropy in place of the squared error.

[1] Kingma & Welling 2014, arXiv:1312.6114    [2] van der Maaten & Hinton 2008 (t-SNE), JMLR 9:2579
"""
import dataclasses
from typing import Tuple

import torch
from sklearn.manifold import TSNE
from torch import nn

from studies import figures, losses, metrics, report
from studies.report import Section, Table
from studies.training import StudyModule, mapped

TITLE = "An autoencoder and a VAE of the same layers"
LEAD = "784-128-64-32 and back, {epochs} epochs on {train:,} images"
EXAMPLE = "python -m studies autoencoder MNIST --out autoencoder --seeds 3 --variant bce"
CHANNELS, LABELLED, FID = 1, True, False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greyscale images of 28 x 28 px, as 784 numbers in [0, 1]."""
    side: int = 28
    widths: Tuple[int, ...] = (128, 64)
    latent: int = 32
    loss: str = "mse"           # or bce; summed over the pixels
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 50
    seed: int = 0
    # measurement
    test_share: float = 0.2     # held out where the data has no test files
    most_train: int = 60_000
    most_test: int = 10_000
    tsne_points: int = 2000
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


VARIANTS = {"bce": {"loss": "bce"}}
QUICK = {"most_train": 4000, "most_test": 1000, "tsne_points": 600, "feature_steps": 250}
MODELS = ("AE", "VAE")


# --------------------------------------------------------------------------------------------------------------- model

def mlp(*widths):
    """Linear layers with ReLU between."""
    layers = []
    for width, following in zip(widths, widths[1:]):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(StudyModule):
    """784-128-64-32-64-128-784; the VAE's encoder gives 32 means and 32 log-variances of q(z|x) [1]."""

    def __init__(self, settings, variational):
        super().__init__()
        self.save_hyperparameters({"variational": variational, "loss": settings.loss, "lr": settings.lr,
                                   "widths": list(settings.widths), "latent": settings.latent})
        self.side, self.variational, pixels = settings.side, variational, settings.side ** 2
        self.encoder = mlp(pixels, *settings.widths, settings.latent * (2 if variational else 1))
        self.decoder = mlp(settings.latent, *settings.widths[::-1], pixels)

    def encode(self, x):
        """Images (B, 1, S, S) -> latents (B, 32): of the VAE, the means."""
        code = self.encoder(x.flatten(1))
        return code.chunk(2, dim=1)[0] if self.variational else code

    def decode(self, z):
        """Latents (B, 32) -> images (B, 1, S, S) in [0, 1]."""
        return self.decoder(z).sigmoid().view(-1, 1, self.side, self.side)

    def reconstruct(self, x):
        """Images (B, 1, S, S) -> images, without noise."""
        return self.decode(self.encode(x))

    def losses(self, x, y):
        z, found, kl = self.encoder(x.flatten(1)), {}, 0.0
        if self.variational:
            mean, log_variance = z.chunk(2, dim=1)
            z, kl = losses.reparameterize(mean, log_variance), losses.kl_divergence(mean, log_variance).mean()
            found["kl"] = kl
        logits = self.decoder(z)
        if self.hparams.loss == "bce":
            reconstruction = losses.binary_cross_entropy(logits, x.flatten(1)).mean()
        else:
            reconstruction = (logits.sigmoid() - x.flatten(1)).square().sum(1).mean()
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, **found}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


# --------------------------------------------------------------------------------------------------- train and measure

def train(study):
    """{"features": (function, facts), (variant, seed, "AE" or "VAE"): Autoencoder}."""
    extract = metrics.train_feature_extractor(study.run, study.train, study.test, study.settings.feature_steps,
                                              study.args.seed)
    models = {"features": extract}
    for variant, settings in study.variants.items():
        for seed in study.seeds:
            for kind in MODELS:
                torch.manual_seed(seed)
                models[variant, seed, kind] = study.run.fit(
                    f"{kind.lower()}_{variant}_seed{seed}", Autoencoder(settings, kind == "VAE"), study.train,
                    study.test, epochs=settings.epochs, batch_size=settings.batch_size, seed=seed)
    return models


def samples(model, n, seed):
    """n images (n, 1, S, S) in [0, 1], decoded from z ~ N(0, I)."""
    noise = torch.randn(n, model.hparams.latent, generator=torch.Generator().manual_seed(seed))
    return mapped(model.decode, noise)


def measure_model(model, study, extract, seed):
    """Numbers of one trained model on the held-out images."""
    train, test, last = study.train, study.test, model.history[-1]
    train_z, test_z = mapped(model.encode, train.pixels), mapped(model.encode, test.pixels)
    drawn = samples(model, len(test), seed)
    return {
        "mse": float(losses.squared_error(mapped(model.reconstruct, test.pixels), test.floats()).mean()),
        "loss": last["test_loss"], "reconstruction": last["test_reconstruction"], "kl": last.get("test_kl"),
        "knn_accuracy": metrics.knn_accuracy(train_z, train.labels, test_z, test.labels),
        "silhouette": metrics.silhouette(test_z, test.labels),
        "fid": metrics.fids(extract, train, test, {"samples": drawn}, seed)["samples"],
        "diversity": metrics.mean_pairwise_l2(drawn), "sharpness": metrics.sharpness(drawn), "seconds": model.seconds}


def measure(study, models):
    """{"numbers": {variant: {model: {measure: {"mean", "sd", "values"}}}}, ...} for results.json."""
    (extract, about), train, test = models["features"], study.train, study.test
    seed = study.args.seed
    some = test.at_most(1000, seed)
    return {
        "numbers": {variant: metrics.summarise([
            {kind: measure_model(models[variant, seed, kind], study, extract, seed) for kind in MODELS}
            for seed in study.seeds]) for variant in study.variants},
        "features": about,
        "real": {"fid": metrics.fids(extract, train, test, {"held out": test.floats()})["training images"],
                 "diversity": metrics.mean_pairwise_l2(some.floats()), "sharpness": metrics.sharpness(test.floats()),
                 "knn_accuracy": about["guessing"]},
        "history": {" ".join(map(str, key)): model.history for key, model in models.items() if key != "features"}}


def draw(study, models, results, album):
    """Figures of the first seed's models, all variants."""
    seed, test = study.args.seed, study.test
    some = test.at_most(study.settings.tsne_points, seed)
    few = test.at_most(12, seed)
    for variant in study.variants:
        pair = {kind: models[variant, seed, kind] for kind in MODELS}
        unit = "squared error an image" if study.variants[variant].loss == "mse" else "nats an image"
        album.add(f"loss_{variant}", figures.curves_figure({
            "loss": {f"{part} {kind}": model.curve(name) for kind, model in pair.items()
                     for part, name in (("training", "train_loss"), ("held-out", "test_loss"))},
            "reconstruction": {f"held-out {kind}": model.curve("test_reconstruction") for kind, model in pair.items()},
            "KL of the VAE": {"training": pair["VAE"].curve("train_kl"), "held-out": pair["VAE"].curve("test_kl")},
        }, {"loss": unit, "reconstruction": unit, "KL of the VAE": "nats an image"}),
            "Loss, reconstruction term and KL against epochs, for AE and VAE.",
            f"{variant}: loss, its reconstruction term, and the VAE's KL (nats) against epochs.")
        album.add(f"reconstructions_{variant}", figures.rows_figure({
            "original": few.floats(), **{kind: mapped(model.reconstruct, few.pixels) for kind, model in pair.items()}}),
            "Three rows of held-out images: originals, reconstructions of the AE, of the VAE.",
            f"{variant}: held-out images drawn at random; the VAE decodes its mean.")
        album.add(f"samples_{variant}", figures.grid_figure({
            f"{kind}, z ~ N(0, I)": samples(model, 64, seed) for kind, model in pair.items()}),
            "Two grids of 64 images decoded from standard normal noise, by the AE and by the VAE.",
            f"{variant}: the same 64 latents from N(0, I), not selected. The AE is not trained to have latents there.")
        album.add(f"tsne_{variant}", figures.scatter_figure({
            f"{kind}, {len(some):,} held-out images": TSNE(
                2, perplexity=min(30, (len(some) - 1) / 3), init="pca", random_state=seed).fit_transform(
                    mapped(model.encode, some.pixels).numpy()) for kind, model in pair.items()},
            some.labels, some.classes), "t-SNE of the latents of the AE and of the VAE, coloured by class.",
            f"{variant}: t-SNE of the latents (van der Maaten & Hinton 2008). Axes and distances have no unit.")


# --------------------------------------------------------------------------------------------------------------- report

ROWS = (  # title, key
    ("mean squared error of reconstructions ↓", "mse"), ("loss, summed over an image", "loss"),
    ("  its reconstruction term", "reconstruction"), ("  KL divergence, nats", "kl"),
    ("k-NN accuracy of the latents ↑", "knn_accuracy"), ("silhouette of the classes, -1 to 1 ↑", "silhouette"),
    ("FID of samples from N(0, I) ↓", "fid"), ("mean pairwise L2 of samples", "diversity"),
    ("sharpness of samples", "sharpness"), ("training, seconds", "seconds"))


def sections(results, album):
    """The report's sections from results.json and the pictures."""
    found, real, variants = results["numbers"], results["real"], results["variants"]
    columns = [(variant, kind) for variant in variants for kind in MODELS]
    table = Table(
        f"{results['data']['held_out']:,} held-out images; {report.seeds_text(results)}.",
        ["measure", *(f"{kind}, {variant}" for variant, kind in columns), "real images"],
        [[title, *(report.number(found[variant][kind][key]) for variant, kind in columns),
          report.number(real[key]) if key in real else ""] for title, key in ROWS])
    return [
        Section("Results", [
            report.features_text(results["features"]),
            "Real images: the FID of training images; for k-NN, the accuracy of always naming the most frequent class. "
            "Sharpness: variance of the Laplacian. ↓: lower is better, ↑: higher is better; diversity and sharpness "
            "should be as those of real images."],
            [table]),
        *(Section(f"Figures: {variant}", (), (), [
            album[f"{name}_{variant}"] for name in ("loss", "reconstructions", "samples", "tsne")])
          for variant in variants)]
