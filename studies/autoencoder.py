"""Study 1: an autoencoder (AE) and a variational autoencoder (VAE) of the same body, side by side.

What is usually shown in pictures alone is measured as well, on images that were not trained on: reconstruction error,
accuracy of the nearest neighbours' label in the latent space, silhouette of the classes there, and FID of what the
decoders make of z ~ N(0, I).

[1] Kingma & Welling 2014, arXiv:1312.6114    [2] van der Maaten & Hinton 2008 (t-SNE), JMLR 9:2579
"""
import dataclasses
import sys
import time
import warnings
from typing import Tuple

import numpy as np
import torch
from torch import nn

from studies import data, engine, figures, losses, metrics, report
from studies.figures import Picture
from studies.report import Section, Table

EXAMPLE = "python -m studies autoencoder MNIST --out autoencoder --seeds 3"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greyscale images of 28 x 28 px, as 784 numbers in [0, 1]."""
    # model: 784-128-64-32 and back, ReLU between, sigmoid at the end; the VAE has 32 means + 32 log-variances
    side: int = 28
    widths: Tuple[int, ...] = (128, 64)
    latent: int = 32
    # training: binary cross-entropy, for the VAE plus the KL divergence
    optimizer: str = "Adam"
    rate: float = 1e-3
    batch: int = 128
    epochs: int = 50
    # measurement
    test_share: float = 0.2     # held out where the data has no test files
    most_train: int = 60_000
    most_test: int = 10_000
    neighbours: int = 5
    silhouette_points: int = 5000
    tsne_points: int = 2000
    perplexity: float = 30.0
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


QUICK = {"most_train": 4000, "most_test": 1000, "tsne_points": 600, "feature_steps": 250}


# --------------------------------------------------------------------------------------------------------------- model

def _layers(widths):
    layers = []
    for width, following in zip(widths, widths[1:]):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """784-128-64-32-64-128-784 with ReLU between; the latent itself is linear."""

    codes = 1  # numbers the encoder gives a latent dimension

    def __init__(self, settings):
        super().__init__()
        pixels, latent = settings.side ** 2, settings.latent
        self.encoder = _layers([pixels, *settings.widths, self.codes * latent])
        self.decoder = _layers([latent, *settings.widths[::-1], pixels])
        self.shape = (1, settings.side, settings.side)

    def encode(self, x):
        """Images (B, 1, S, S) -> latents (B, 32)."""
        return self.encoder(x.flatten(1))

    def decode(self, z):
        """Latents (B, 32) -> images (B, 1, S, S) in [0, 1]."""
        return self.decoder(z).sigmoid().view(-1, *self.shape)

    def reconstruct(self, x):
        """Images (B, 1, S, S) -> images, deterministically."""
        return self.decode(self.encode(x))

    def forward(self, x):
        """Images (B, 1, S, S) -> Bernoulli logits (B, 784)."""
        return self.decoder(self.encode(x))


class VariationalAutoencoder(Autoencoder):
    """The same body; the encoder gives the mean and log-variance of q(z|x) [1]."""

    codes = 2

    def posterior(self, x):
        """Images (B, 1, S, S) -> mean and log-variance, each (B, 32)."""
        return self.encoder(x.flatten(1)).chunk(2, dim=1)

    def encode(self, x):
        """Images (B, 1, S, S) -> means (B, 32)."""
        return self.posterior(x)[0]

    def forward(self, x, noise):
        """Images, noise (B, 32) -> Bernoulli logits (B, 784) of a sampled latent, mean, log-variance."""
        mean, log_variance = self.posterior(x)
        return self.decoder(losses.reparameterize(mean, log_variance, noise)), mean, log_variance


def _ae_step(modules, batch):
    loss = losses.bernoulli_nll(modules["ae"](batch.x), batch.x).mean()
    return {"loss": loss, "reconstruction": loss}


def _vae_step(modules, batch):
    latent = modules["vae"].module.decoder[0].in_features
    logits, mean, log_variance = modules["vae"](batch.x, batch.normal(latent))
    loss, reconstruction, kl = losses.negative_elbo(logits, batch.x, mean, log_variance)
    return {"loss": loss.mean(), "reconstruction": reconstruction.mean(), "kl": kl.mean()}


KINDS = {"AE": ("ae", Autoencoder, _ae_step), "VAE": ("vae", VariationalAutoencoder, _vae_step)}


# ------------------------------------------------------------------------------------------------------------ training

def train_one(bench, kind, settings, train, test, seed):
    """engine.Fitted of the "AE" or the "VAE" for one seed."""
    name, model_class, step = KINDS[kind]
    with engine.seeded(seed, 1):
        model = model_class(settings)
    optimizer = getattr(torch.optim, settings.optimizer)(model.parameters(), settings.rate)
    about = {"model": name, "widths": list(settings.widths), "latent": settings.latent, "rate": settings.rate}
    return engine.fit(bench, f"{name}_seed{seed}", {name: model}, {name: optimizer}, step, train, test,
                      epochs=settings.epochs, batch=settings.batch, seed=seed, about=about)


# --------------------------------------------------------------------------------------------------------- measurement

def samples(model, settings, n, seed):
    """n images (n, 1, S, S) in [0, 1], decoded from z ~ N(0, I)."""
    return engine.mapped(model.decode, torch.randn(n, settings.latent, generator=engine.generator(seed, 21)))


def measure(fitted, kind, settings, train, test, features, seed):
    """What one trained model is worth, on the held-out images: a dict of numbers."""
    model, last = fitted.modules[KINDS[kind][0]], fitted.history[-1]["test"]
    train_z, test_z = engine.mapped(model.encode, train.pixels), engine.mapped(model.encode, test.pixels)
    drawn = samples(model, settings, len(test), seed)
    real = test.pixels.float() / 255
    found = metrics.fid_with_floor(features, train, test, {"samples": drawn}, seed)
    return {
        "mse": float(losses.squared_error(engine.mapped(model.reconstruct, test.pixels), real).mean()),
        "reconstruction": last["reconstruction"], "kl": last.get("kl"), "loss": last["loss"],
        "knn_accuracy": metrics.knn_accuracy(train_z, train.labels, test_z, test.labels, settings.neighbours),
        "silhouette": metrics.silhouette(test_z, test.labels, settings.silhouette_points, seed),
        "fid": found["samples"], "fid_floor": found["floor"],
        "diversity": metrics.mean_pairwise_l2(drawn[:1000]), "sharpness": metrics.sharpness(drawn),
        "train_loss": fitted.history[-1]["train"]["loss"], "seconds": fitted.seconds}


def tsne(z, settings, seed):
    """Points (N, 2) of latents (N, D) [2], by scikit-learn."""
    from sklearn.manifold import TSNE
    perplexity = min(settings.perplexity, (len(z) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(np.asarray(z))


# ------------------------------------------------------------------------------------------------------------- pictures

def draw(fits, settings, test, seed, signature):
    """{name: Picture} of the first seed's models {kind: Fitted}."""
    models = {kind: fits[kind].modules[KINDS[kind][0]] for kind in KINDS}
    vae_fit, epochs = fits["VAE"], len(fits["VAE"].history)
    some = torch.randperm(len(test), generator=engine.generator(seed, 22))
    few, points = some[:12], some[:settings.tsne_points]
    originals = test.pixels[few]
    chosen_z = {kind: engine.mapped(model.encode, test.pixels[points]) for kind, model in models.items()}

    def picture(name, figure, alt, caption):
        return name, Picture(name, figures.png_bytes(figure, signature), alt, caption)

    return dict([
        picture("loss_curves", figures.curves_figure(
            {kind: {f"{label} {kind} loss": fit.curve(part, "loss")
                    for label, part in (("training", "train"), ("held-out", "test"))} for kind, fit in fits.items()},
            "nats an image", common_scale=True),
            f"Two panels on one scale: loss of the AE and of the VAE against {epochs} epochs, training and held-out.",
            "Loss against epochs, in nats an image. AE: binary cross-entropy; VAE: the same plus KL. The training "
            "curve is the mean over the epoch, while the weights were changing; the held-out one is taken after it."),
        picture("kl", figures.curves_figure(
            {"KL divergence of the VAE": {"training KL": vae_fit.curve("train", "kl"),
                                          "held-out KL": vae_fit.curve("test", "kl")},
             "reconstruction term of both": {f"held-out {kind}": fit.curve("test", "reconstruction")
                                             for kind, fit in fits.items()}},
            "nats an image"),
            f"Left, KL divergence of the VAE against {epochs} epochs; right, the reconstruction terms of both models.",
            "Left: KL(q(z|x) || N(0, I)), what an image's latent costs. Right: binary cross-entropy of held-out "
            "images; the VAE's is for a sampled latent."),
        picture("reconstructions", figures.rows_figure(
            {"original": originals.float() / 255,
             **{kind: engine.mapped(model.reconstruct, originals) for kind, model in models.items()}}),
            "Three rows of twelve held-out images: originals, reconstructions of the AE, of the VAE.",
            "Held-out images, drawn at random; the VAE decodes its mean."),
        picture("samples", figures.grid_figure(
            {f"{kind}, z ~ N(0, I)": samples(model, settings, 64, seed) for kind, model in models.items()}),
            "Two grids of 64 images decoded from standard normal noise, by the AE and by the VAE.",
            "The same 64 latents from N(0, I), not selected. Nothing in its training tells the AE where its latents "
            "should lie, so N(0, I) is no distribution of its own: the comparison shows what the KL term buys."),
        picture("tsne", figures.scatter_figure(
            {f"{kind}, {len(points):,} held-out images": tsne(z, settings, seed) for kind, z in chosen_z.items()},
            test.labels[points], test.classes),
            "Two scatter plots, t-SNE of the latents of the AE and of the VAE, coloured by class.",
            "t-SNE of the latents (the VAE's means). The axes have no unit, and distances between clusters no meaning; "
            "the numbers in the table are measured on the latents themselves.")])


# --------------------------------------------------------------------------------------------------------------- report

ROWS = (  # title, how to read it, key
    ("reconstruction error, mean squared", "lower is better", "mse"),
    ("reconstruction, cross-entropy", "nats an image", "reconstruction"),
    ("KL divergence", "nats an image", "kl"),
    ("loss", "nats an image", "loss"),
    ("k-NN accuracy of the latents", "higher is better", "knn_accuracy"),
    ("silhouette of the classes", "higher is better, -1 to 1", "silhouette"),
    ("FID of samples from N(0, I)", "lower is better", "fid"),
    ("diversity of samples, mean pairwise L2", "beside that of real images", "diversity"),
    ("sharpness of samples, variance of the Laplacian", "beside that of real images", "sharpness"),
    ("training", "seconds", "seconds"))


def sections(results, pictures):
    """The report's sections from results.json and the pictures."""
    found, judge, about, settings = (results[key] for key in ("numbers", "features", "data", "settings"))
    train, held = about["train"], about["held_out"]
    real = {"fid": found["AE"]["fid_floor"]["mean"], "diversity": results["real"]["diversity"],
            "sharpness": results["real"]["sharpness"], "knn_accuracy": results["real"]["majority"]}
    seeds = len(results["seeds"])
    numbers = Table(
        f"On {held:,} held-out images; {'one seed' if seeds == 1 else f'mean ± standard deviation of {seeds} seeds'}.",
        ["measure", "AE", "VAE", "to compare with", "how to read it"],
        [[title, report.number(found["AE"][key]), report.number(found["VAE"][key]),
          {"fid": "floor ", "knn_accuracy": "majority ", "diversity": "real ", "sharpness": "real "}.get(key, "")
          + (report.number(real[key]) if key in real else ""), reading] for title, reading, key in ROWS])
    return [
        Section("What was measured", [
            f"Each number is of {held:,} images that no model was trained on; {train:,} were trained on. "
            "Reconstruction error: the AE from its latent, the VAE from its mean for the squared error and from a "
            "sampled latent for the cross-entropy. k-NN: the label of most of "
            f"{settings['neighbours']} nearest training latents; the majority class alone would score "
            f"{report.share(results['real']['majority'])}.",
            f"FID: features of a classifier trained on the training images to tell {judge['what']}, "
            f"{report.share(judge['accuracy'], judge['interval'])} right on the held-out ones (95 % interval) and "
            f"{report.share(judge['train_accuracy'])} on those it learnt from; "
            f"{results['fid_images']:,} samples against as many held-out images. Its floor is the FID of as many real "
            "training images, which the classifier has seen. It is comparable within this report alone, not with "
            "an FID of Inception features." + report.weak_features(judge, results["real"]["majority"],
                                                                   "this FID decides little here")],
            [numbers]),
        Section("Training", [], [], [pictures["loss_curves"], pictures["kl"]]),
        Section("Reconstructions and samples", [], [], [pictures["reconstructions"], pictures["samples"]]),
        Section("Latents", [], [], [pictures["tsne"]]),
        report.run_section(results)]


# --------------------------------------------------------------------------------------------------------- command line

def add_arguments(parser):
    """This study has no flags of its own."""


def run(args):
    """The whole study; returns the exit code. Raises InputError."""
    began = time.monotonic()
    settings = Settings(**(QUICK if args.quick else {}))
    settings = dataclasses.replace(settings, epochs=args.epochs or settings.epochs)
    train, test, how = data.for_study(args, settings, 1, labelled=True)
    bench = engine.open_bench(args.out, args.device, args.devices, args.precision, args.resume)
    seeds = range(args.seed, args.seed + args.seeds)
    net, judge = metrics.train_feature_net(bench, train, test, settings.feature_steps, seed=args.seed)
    fits = {seed: {kind: train_one(bench, kind, settings, train, test, seed) for kind in KINDS} for seed in seeds}
    if not bench.leads:
        return 0

    def features(images):
        return engine.mapped(net.features, images)

    print("measuring", file=sys.stderr)
    numbers = [{kind: measure(fits[seed][kind], kind, settings, train, test, features, seed) for kind in KINDS}
               for seed in seeds]
    real = test.pixels.float() / 255
    results = {
        **report.run_facts(args, bench, settings, train, test, how), "numbers": metrics.summarise(numbers),
        "history": {str(seed): {kind: fit.history for kind, fit in fits[seed].items()} for seed in seeds},
        "features": judge, "fid_images": min(len(train), len(test)),
        "real": {"diversity": metrics.diversity(real, 1000, args.seed), "sharpness": metrics.sharpness(real),
                 "majority": metrics.majority_baseline(train.labels, test.labels)},
        "parameters": {kind: sum(p.numel() for p in fit.modules[KINDS[kind][0]].parameters())
                       for kind, fit in fits[args.seed].items()}}
    pictures = draw(fits[args.seed], settings, test, args.seed, args.signature)
    print(report.write_study(
        bench.folder, "An autoencoder and a VAE of the same body",
        f"784-128-64-32 and back, {settings.epochs} epochs on {len(train):,} images", sections, pictures, results,
        began))
    return 0
