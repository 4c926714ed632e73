"""Study 1: an autoencoder (AE) and a variational autoencoder (VAE) [1] of the same layers, side by side.

Described: 784-128-64-32 and back, ReLU between, sigmoid at the end; the AE minimises the squared error, the VAE the
squared error + KL, each summed over an image; Adam 1e-3, batches of 128, 50 epochs, MNIST.
--variant bce: binary cross-entropy in place of the squared error.

[1] Kingma & Welling 2014, arXiv:1312.6114
"""
import dataclasses
import itertools

import torch
from sklearn.manifold import TSNE
from torch import nn

from studies import figures, losses, metrics, report
from studies.training import StudyModule, decoded_noise, mapped, mlp

TITLE = "An autoencoder and a VAE of the same layers"
LEAD = "784-128-64-32 and back, {epochs} epochs on {train:,} images"
EXAMPLE = "python -m studies autoencoder MNIST --out autoencoder --seeds 3 --variant bce"
CHANNELS, LABELLED = 1, True


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greyscale images of 28 x 28 px, as 784 numbers in [0, 1]."""
    side: int = 28
    widths: tuple = (128, 64)
    latent: int = 32
    loss: str = "mse"           # or bce; summed over the pixels
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 50
    seed: int = 0
    most_train: int = 60_000
    most_test: int = 10_000
    tsne_points: int = 2000
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


VARIANTS = {"bce": {"loss": "bce"}}
QUICK = {"most_train": 4000, "most_test": 1000, "tsne_points": 600, "feature_steps": 250}
MODELS = ("AE", "VAE")


class Autoencoder(losses.GaussianVAE, StudyModule):
    """784-128-64-32-64-128-784; the VAE's encoder gives 32 means and 32 log-variances of q(z|x) [1]."""

    def __init__(self, settings, variational):
        super().__init__()
        self.save_hyperparameters({"variational": variational, "loss": settings.loss, "lr": settings.lr,
                                   "widths": list(settings.widths), "latent": settings.latent})
        self.variational, pixels = variational, settings.side ** 2
        self.encoder = nn.Sequential(*mlp(pixels, *settings.widths, settings.latent * (1 + variational)))
        self.decoder = nn.Sequential(*mlp(settings.latent, *settings.widths[::-1], pixels),
                                     nn.Unflatten(1, (1, settings.side, settings.side)))

    def posterior(self, x):
        """Images (B, 1, S, S) -> mean and log-variance of q(z|x), each (B, 32); of the AE, the latents and None."""
        code = self.encoder(x.flatten(1))
        return code.chunk(2, dim=1) if self.variational else (code, None)

    def losses(self, x, y):
        mean, log_variance = self.posterior(x)
        z = losses.reparameterize(mean, log_variance) if self.variational else mean
        if self.hparams.loss == "bce":
            reconstruction = losses.binary_cross_entropy(self.decoder(z), x).mean()
        else:
            reconstruction = (self.decode(z) - x).square().flatten(1).sum(1).mean()
        if not self.variational:
            return {"loss": reconstruction, "reconstruction": reconstruction}
        kl = losses.kl_divergence(mean, log_variance).mean()
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def train(study):
    """{"features": (function, facts), (variant, seed, "AE" or "VAE"): Autoencoder}."""
    models = {"features": metrics.train_feature_extractor(study)}
    for (variant, settings), seed, kind in itertools.product(study.variants.items(), study.seeds, MODELS):
        torch.manual_seed(seed)
        models[variant, seed, kind] = study.run.fit(
            f"{kind.lower()}_{variant}_seed{seed}", Autoencoder(settings, kind == "VAE"), study.train, study.test,
            epochs=settings.epochs, batch_size=settings.batch_size, seed=seed)
    return models


def measure_model(model, study, extract, seed):
    """Numbers of one trained model on the held-out images."""
    train, test, last = study.train, study.test, model.history[-1]
    train_z, test_z = (mapped(model.encode, images.pixels) for images in (train, test))
    samples = decoded_noise(model.decode, model.hparams.latent, len(test), seed)
    return {
        "mse": float(losses.squared_error(mapped(model.reconstruct, test.pixels), test.floats()).mean()),
        "loss": last["test_loss"], "reconstruction": last["test_reconstruction"], "kl": last.get("test_kl"),
        "knn_accuracy": metrics.knn_accuracy(train_z, train.labels, test_z, test.labels),
        "silhouette": metrics.silhouette(test_z, test.labels),
        "fid": metrics.fids(extract, train, test, {"samples": samples}, seed)["samples"], "seconds": model.seconds}


def measure(study, models):
    """{"numbers": {variant: {model: {measure: {"mean", "sd", "values"}}}}, ...} for results.json."""
    (extract, about), train, test = models["features"], study.train, study.test
    return {
        "numbers": {variant: metrics.summarise([
            {kind: measure_model(models[variant, seed, kind], study, extract, seed) for kind in MODELS}
            for seed in study.seeds]) for variant in study.variants},
        "features": about,
        "real": {"knn_accuracy": about["guessing"], "fid": metrics.fids(extract, train, test, {})["training images"]},
        "history": {" ".join(map(str, key)): model.history for key, model in models.items() if key != "features"}}


ROWS = {
    "mse": "mean squared error of reconstructions ↓", "loss": "loss, summed over an image",
    "reconstruction": "  its reconstruction term", "kl": "  KL divergence, nats",
    "knn_accuracy": "k-NN accuracy of the latents ↑", "silhouette": "silhouette of the classes, -1 to 1 ↑",
    "fid": "FID of samples from N(0, I) ↓", "seconds": "training, seconds"}


def sections(study, models, results, picture):
    """The report's sections; the figures are of the first seed's models."""
    numbers, data = results["numbers"], results["data"]
    columns = {f"{kind}, {variant}": numbers[variant][kind] for variant in study.variants for kind in MODELS}
    return [
        report.Section("Results", [
            report.features_text(results["features"]),
            "Real images: the FID of training images; for k-NN, the accuracy of always naming the most frequent class. "
            "↓: lower is better, ↑: higher is better."],
            [report.compared(f"{data['held_out']:,} held-out images; {report.seeds_text(results)}.",
                             {**columns, "real images": results["real"]}, ROWS)]),
        *(report.Section(f"Figures: {variant}", (), (), pictures(variant, study, models, picture))
          for variant in study.variants)]


def pictures(variant, study, models, picture):
    """The pictures of a variant."""
    seed, test = study.args.seed, study.test
    few, some = test.at_most(12, seed), test.at_most(study.settings.tsne_points, seed)
    pair = {kind: models[variant, seed, kind] for kind in MODELS}
    unit = "squared errors" if study.variants[variant].loss == "mse" else "nats"
    terms = {term: {**pair["AE"].curves(term, "AE"), **pair["VAE"].curves(term, "VAE")}
             for term in ("loss", "reconstruction")}
    tsne = {f"{kind}, {len(some):,} held-out images": TSNE(
        2, perplexity=min(30, (len(some) - 1) / 3), init="pca", random_state=seed).fit_transform(
            mapped(model.encode, some.pixels).numpy()) for kind, model in pair.items()}
    return [
        picture(f"loss_{variant}", figures.curves_figure({**terms, "KL": pair["VAE"].curves("kl", "VAE")}),
                f"{variant}: loss and reconstruction ({unit} an image) and the VAE's KL (nats) against epochs."),
        picture(f"reconstructions_{variant}", figures.rows_figure({"original": few.floats(), **{
            kind: mapped(model.reconstruct, few.pixels) for kind, model in pair.items()}}),
            f"{variant}: held-out images drawn at random, reconstructed by the AE and from the VAE's mean."),
        picture(f"samples_{variant}", figures.grid_figure({
            f"{kind}, z ~ N(0, I)": decoded_noise(model.decode, model.hparams.latent, 64, seed)
            for kind, model in pair.items()}),
            f"{variant}: the same 64 latents from N(0, I), decoded, not selected. The AE never saw such ones."),
        picture(f"tsne_{variant}", figures.scatter_figure(tsne, some.labels, some.classes),
                f"{variant}: t-SNE of the latents by class. Axes and distances have no unit.")]
