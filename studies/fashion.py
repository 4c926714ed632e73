"""Study 2: a convolutional VAE of garments, and what beta does to a latent of two dimensions.

The words that usually go with such pictures (sharp, diverse, well separated) are numbers here, on images that were not
trained on: variance of the Laplacian, mean distance of two images, silhouette and nearest neighbours of the means, and
FID with the features of a classifier that has learnt the data.

[1] Kingma & Welling 2014, arXiv:1312.6114            [3] Xiao et al. 2017 (Fashion-MNIST), arXiv:1708.07747
[2] Higgins et al. 2017 (beta-VAE), ICLR              [4] Ioffe & Szegedy 2015 (batch norm), arXiv:1502.03167
"""
import dataclasses
import sys
import time
from typing import Tuple

import numpy as np
import torch
from torch import nn

import bird
from common.errors import InputError
from studies import data, engine, figures, losses, metrics, report
from studies.figures import Picture
from studies.report import Section, Table

EXAMPLE = "python -m studies fashion FashionMNIST --out fashion --seeds 3"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greyscale images of 28 x 28 px with pixels in [0, 1]."""
    # model: convolutions 1-32-64, each with stride 2, batch norm and ReLU; 64*7*7 -> mean and log-variance; mirrored
    side: int = 28
    channels: Tuple[int, ...] = (32, 64)
    kernel: int = 3
    latent: int = 16
    # training: binary cross-entropy summed over the pixels + beta * KL
    beta: float = 1.0
    optimizer: str = "Adam"
    rate: float = 1e-3
    batch: int = 128
    epochs: int = 25
    # beta against beta: the same network with a latent of two dimensions, on three classes
    betas: Tuple[float, ...] = (0.1, 0.5, 1.0)
    beta_classes: Tuple[int, ...] = (0, 1, 7)
    beta_latent: int = 2
    beta_epochs: int = 20
    # frozen mean: one image's mean + sigma * noise
    sigmas: Tuple[float, ...] = (0.1, 0.5, 1.0)
    # measurement
    test_share: float = 0.2     # held out where the data has no test files
    most_train: int = 60_000
    most_test: int = 10_000
    neighbours: int = 5
    silhouette_points: int = 5000
    diversity_images: int = 1000
    scatter_points: int = 1000  # of a GIF
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


QUICK = {"most_train": 5000, "most_test": 1000, "diversity_images": 500, "feature_steps": 400}


# --------------------------------------------------------------------------------------------------------------- model

class ConvVAE(nn.Module):
    """1-32-64 convolutions, stride 2, batch norm [4], ReLU; 64*7*7 -> mean and log-variance; the decoder mirrors it.

    Between the convolutions and the linear layers the features go as (7, 7, 64): in channels_last that is how they lie
    in memory, so no copy is made."""

    def __init__(self, settings, latent=None):
        super().__init__()
        first, second = settings.channels
        kernel, self.latent, self.low = settings.kernel, latent or settings.latent, (settings.side // 4, second)
        options = {"stride": 2, "padding": (kernel - 1) // 2}
        more = {**options, "output_padding": kernel % 2}
        features = settings.side // 4 * (settings.side // 4) * second
        self.encoder = nn.Sequential(  # no bias before a norm, which would take it away again
            nn.Conv2d(1, first, kernel, bias=False, **options), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
            nn.Conv2d(first, second, kernel, bias=False, **options), nn.BatchNorm2d(second), nn.ReLU(inplace=True))
        self.to_posterior = nn.Linear(features, 2 * self.latent)
        self.from_latent = nn.Linear(self.latent, features)
        self.decoder = nn.Sequential(  # a norm here as well would hide from the decoder where the latents lie
            nn.ReLU(),
            nn.ConvTranspose2d(second, first, kernel, bias=False, **more), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(first, 1, kernel, **more))

    def posterior(self, x):
        """Images (B, 1, S, S) -> mean and log-variance of q(z|x) [1], each (B, D)."""
        return self.to_posterior(self.encoder(x).permute(0, 2, 3, 1).flatten(1)).chunk(2, dim=1)

    def encode(self, x):
        """Images (B, 1, S, S) -> means (B, D)."""
        return self.posterior(x)[0]

    def spread(self, x):
        """Images (B, 1, S, S) -> standard deviations of q(z|x) (B, D)."""
        return (self.posterior(x)[1] / 2).exp()

    def decode_logits(self, z):
        """Latents (B, D) -> Bernoulli logits (B, 1, S, S)."""
        side, channels = self.low
        return self.decoder(self.from_latent(z).view(-1, side, side, channels).permute(0, 3, 1, 2))

    def decode(self, z):
        """Latents (B, D) -> images (B, 1, S, S) in [0, 1]."""
        return self.decode_logits(z).sigmoid()

    def reconstruct(self, x):
        """Images (B, 1, S, S) -> images, from their means."""
        return self.decode(self.encode(x))

    def forward(self, x, noise):
        """Images, noise (B, D) -> Bernoulli logits (B, 1, S, S) of a sampled latent, mean, log-variance."""
        mean, log_variance = self.posterior(x)
        return self.decode_logits(losses.reparameterize(mean, log_variance, noise)), mean, log_variance


# ------------------------------------------------------------------------------------------------------------ training

def vae_step(latent, beta):
    """The `step` of engine.fit for modules["vae"]: the loss and its two terms, in nats an image."""
    def step(modules, batch):
        logits, mean, log_variance = modules["vae"](batch.x, batch.normal(latent))
        loss, reconstruction, kl = losses.negative_elbo(logits, batch.x, mean, log_variance, beta)
        return {"loss": loss.mean(), "reconstruction": reconstruction.mean(), "kl": kl.mean()}
    return step


def train_one(bench, name, settings, train, test, seed, latent, beta, epochs, each_epoch=None):
    """engine.Fitted of one ConvVAE, under modules["vae"]."""
    with engine.seeded(seed, 2):
        model = ConvVAE(settings, latent)
    optimizer = bird.in_one_pass(getattr(torch.optim, settings.optimizer), list(model.parameters()), lr=settings.rate)
    about = {"model": "ConvVAE", "channels": list(settings.channels), "kernel": settings.kernel, "latent": latent,
             "beta": beta, "rate": settings.rate}
    return engine.fit(bench, f"{name}_seed{seed}", {"vae": model}, {"vae": optimizer}, vae_step(latent, beta), train,
                      test, epochs=epochs, batch=settings.batch, seed=seed, about=about, each_epoch=each_epoch,
                      channels_last=True)


def scored_after(bench, fitted, settings, train, seed, n):
    """{loss: mean} of n training images in evaluation mode, after the last epoch: what the held-out loss is to be
    compared with. All processes have to call it."""
    some = data.at_most(train, n, seed)
    with bench.fabric.autocast(), torch.no_grad():
        return engine.score(bench.fabric, fitted.modules, vae_step(settings.latent, settings.beta), some,
                            settings.batch, seed, channels_last=True)


def common_classes(train, test, wanted):
    """Which classes are compared: `wanted` if both sets have them all, else the first three that both have."""
    common = sorted(set(train.labels.tolist()) & set(test.labels.tolist()))
    return list(wanted) if set(wanted) <= set(common) else common[:3]


def of_classes(images, chosen):
    """The images of the classes `chosen`, which become 0, 1, ... in that order."""
    kept = images.subset(torch.isin(images.labels, torch.tensor(chosen, dtype=torch.int64)).nonzero().flatten())
    places = torch.full((len(images.classes),), -1)
    places[torch.tensor(chosen, dtype=torch.int64)] = torch.arange(len(chosen))
    return dataclasses.replace(kept, labels=places[kept.labels], classes=[images.classes[i] for i in chosen],
                               skipped=[])


class Watched:
    """What an epoch leaves for the GIF: the means of some held-out images, and a few reconstructions."""

    def __init__(self, test, settings):
        self.points = data.at_most(test, settings.scatter_points, 0)
        shown = [(test.labels == i).nonzero().flatten()[:9 // len(test.classes)] for i in range(len(test.classes))]
        self.originals = test.pixels[torch.cat(shown)]

    def __call__(self, modules, epoch):
        reconstructions = engine.mapped(modules["vae"].reconstruct, self.originals)
        return {"means": engine.mapped(modules["vae"].encode, self.points.pixels),
                "reconstructions": (255 * reconstructions).round().byte()}


# --------------------------------------------------------------------------------------------------------- measurement

def samples(model, n, seed):
    """n images (n, 1, S, S) in [0, 1], decoded from z ~ N(0, I)."""
    return engine.mapped(model.decode, torch.randn(n, model.latent, generator=engine.generator(seed, 31)))


def around_the_mean(model, image, sigmas, n, seed):
    """{sigma: n images decoded from the mean of `image` (1, 1, S, S) + sigma * noise}, the same noise for each."""
    noise = torch.randn(n, model.latent, generator=engine.generator(seed, 32))
    mean = engine.mapped(model.encode, image)
    return {sigma: engine.mapped(model.decode, mean + sigma * noise) for sigma in sigmas}


def looks(drawn, reconstructed, n):
    """Sharpness and diversity of samples and sharpness of reconstructions, each (N, 1, S, S) in [0, 1]."""
    return {"sharpness_reconstructions": metrics.sharpness(reconstructed),
            "sharpness_samples": metrics.sharpness(drawn), "diversity": metrics.mean_pairwise_l2(drawn[:n])}


def measure_vae(fitted, after, settings, train, test, judges, seed, chosen):
    """What the large VAE is worth: a dict of dicts of numbers. `chosen` are the held-out images whose frozen means are
    looked at, the first of them first."""
    model, last, n = fitted.modules["vae"], fitted.history[-1], settings.diversity_images
    drawn, reconstructed = samples(model, len(test), seed), engine.mapped(model.reconstruct, test.pixels)
    fakes = {"reconstructions": reconstructed, "samples": drawn}
    one = around_the_mean(model, chosen[:1], settings.sigmas, n, seed)
    others = [around_the_mean(model, image[None], settings.sigmas, 100, seed) for image in chosen]
    frozen = {str(sigma): {"one": metrics.mean_pairwise_l2(one[sigma]),
                           "mean": float(np.mean([metrics.mean_pairwise_l2(each[sigma]) for each in others]))}
              for sigma in settings.sigmas}
    return {
        "losses": {"during": last["train"], "after": after, "held_out": last["test"]},
        "images": {"mse": float(losses.squared_error(reconstructed, test.pixels.float() / 255).mean()),
                   **looks(drawn, reconstructed, n),
                   "posterior_sd": float(engine.mapped(model.spread, test.pixels).mean()), "seconds": fitted.seconds},
        "frozen": frozen,
        "fid": {name: metrics.fid_with_floor(features, train, test, fakes, seed)
                for name, features in judges.items()}}


def measure_beta(fitted, settings, train, test, seed):
    """What a VAE with a latent of two dimensions is worth, on the held-out images: a dict of numbers."""
    model, last = fitted.modules["vae"], fitted.history[-1]
    train_z, test_z = engine.mapped(model.encode, train.pixels), engine.mapped(model.encode, test.pixels)
    n, reconstructed = settings.diversity_images, engine.mapped(model.reconstruct, test.pixels)
    return {
        "reconstruction": last["test"]["reconstruction"], "kl": last["test"]["kl"],
        "train_reconstruction": last["train"]["reconstruction"], "train_kl": last["train"]["kl"],
        **looks(samples(model, n, seed), reconstructed, n),
        "silhouette": metrics.silhouette(test_z, test.labels, settings.silhouette_points, seed),
        "knn_accuracy": metrics.knn_accuracy(train_z, train.labels, test_z, test.labels, settings.neighbours),
        "seconds": fitted.seconds}


def measure_real(train, test, n, seed):
    """The same numbers of the held-out images themselves."""
    real = test.pixels.float() / 255
    return {"sharpness": metrics.sharpness(real), "diversity": metrics.diversity(real, n, seed),
            "majority": metrics.majority_baseline(train.labels, test.labels)}


# ------------------------------------------------------------------------------------------------------------- pictures

def latent_gif(frames, watched, beta, signature=""):
    """GIF of the frames that Watched left, an epoch each, all on the same axes."""
    limits, points = figures.fixed_limits([frame["means"] for frame in frames]), watched.points
    drawn = (figures.latent_frame(
        frame["means"], points.labels, points.classes, limits,
        {"original": watched.originals.float() / 255, "reconstr.": frame["reconstructions"].float() / 255},
        f"epoch {epoch} of {len(frames)}, β = {beta}") for epoch, frame in enumerate(frames, 1))
    return figures.gif_bytes([figures.png_bytes(figure, signature) for figure in drawn], 400, 3000)


def draw(fits, watched, settings, test, chosen, seed, signature):
    """{name: Picture} of the first seed's models {"vae" or beta: Fitted}."""
    vae, betas, frozen, small, points = (fits["vae"].modules["vae"], settings.betas, chosen[:1], watched.originals,
                                         watched.points)
    some = torch.randperm(len(test), generator=engine.generator(seed, 33))[:64]
    around = around_the_mean(vae, frozen, settings.sigmas, 12, seed)
    blank = torch.ones(10, *frozen.shape[1:])

    def picture(name, content, alt, caption):
        content = content if isinstance(content, bytes) else figures.png_bytes(content, signature)
        return name, Picture(name, content, alt, caption)

    return dict([
        picture("loss_curves", figures.curves_figure(
            {title: {"training": fits["vae"].curve("train", key), "held-out": fits["vae"].curve("test", key)}
             for title, key in (("loss", "loss"), ("reconstruction", "reconstruction"), ("KL", "kl"))},
            "nats an image"),
            f"Three panels: loss, reconstruction term and KL against {settings.epochs} epochs, training and held-out.",
            "Loss and its two terms against epochs. The training curve is the mean over the epoch, while the weights "
            "were changing; the held-out one is taken after it, in evaluation mode."),
        picture("reconstructions", figures.rows_figure(
            {"original": chosen.float() / 255, "reconstr.": engine.mapped(vae.reconstruct, chosen)}),
            f"Two rows of {len(chosen)} held-out images: originals above, their reconstructions below.",
            "Held-out images, drawn at random, and what the decoder makes of their means."),
        picture("samples", figures.grid_figure({
            "held-out images": test.pixels[some].float() / 255,
            "samples, z ~ N(0, I)": samples(vae, len(some), seed)}),
            "Two grids of 64 images: held-out ones, and images decoded from standard normal noise.",
            "Left, held-out images drawn at random; right, 64 samples from the prior, not selected."),
        picture("frozen_mean", figures.rows_figure({
            "original, mean": torch.cat([frozen.float() / 255, engine.mapped(vae.reconstruct, frozen), blank]),
            **{f"σ = {sigma}": images for sigma, images in around.items()}, "prior": samples(vae, 12, seed)}),
            "Rows of images: one original with the reconstruction of its mean; decodings of that mean plus noise of "
            f"standard deviation {', '.join(map(str, settings.sigmas))}; samples from the prior.",
            "Frozen mean: one held-out image's mean plus σ times noise, the same noise in each of these rows; below, "
            "z from the prior N(0, I), whose mean is 0."),
        picture("beta_curves", figures.curves_figure(
            {title: {f"β = {beta}": fits[beta].curve("test", key) for beta in betas}
             for title, key in (("held-out reconstruction", "reconstruction"), ("held-out KL", "kl"))},
            "nats an image"),
            "Two panels: held-out reconstruction term and KL against epochs, a curve for each beta.",
            "What β trades: the reconstruction term and the KL divergence of held-out images, without the factor β."),
        picture("beta_images", figures.rows_figure({
            "original": small.float() / 255,
            **{f"β = {beta}": fits[beta].kept[-1]["reconstructions"].float() / 255 for beta in betas}}),
            "Rows of held-out images: originals, and their reconstructions for each beta.",
            "Held-out images of each class and their reconstructions from two numbers."),
        picture("beta_samples", figures.grid_figure(
            {f"β = {beta}": samples(fits[beta].modules["vae"], 64, seed) for beta in betas}),
            "A grid of 64 samples from the prior for each beta.",
            "The same 64 latents from N(0, I), decoded by each model; not selected."),
        picture("beta_latents", figures.scatter_figure(
            {f"β = {beta}": fits[beta].kept[-1]["means"].numpy() for beta in betas}, points.labels, points.classes),
            "Scatter plots of the two-dimensional means of held-out images by class, one for each beta.",
            f"Means of {len(points):,} held-out images after the last epoch, each panel on a scale of its own; the "
            "GIFs have axes."),
        *(picture(f"beta_{beta}", latent_gif(fits[beta].kept, watched, beta, signature),
                  f"Animation over {settings.beta_epochs} epochs for beta {beta}: means of held-out images by class, "
                  f"and {len(small)} originals with their reconstructions below.",
                  f"β = {beta}, a frame an epoch. Means of {len(points):,} held-out images; the axes stay the same in "
                  "all frames. Grey circles: one and two standard deviations of N(0, I).") for beta in betas)])


# --------------------------------------------------------------------------------------------------------------- report

PUBLISHED = {"train": 240.46, "held_out": 242.31, "fid_untrained": 0.0,
             "beta": {"0.1": [209.47, 8.76], "0.5": [209.79, 6.12], "1.0": [210.55, 5.28]}}  # reconstruction, KL


def _loss_table(results):
    found, about, published = results["numbers"]["vae"]["losses"], results["data"], results["published"]
    rows = [(f"training, mean during the last epoch, n = {about['train']:,}", "train", "during"),
            (f"training, after the last epoch, n = {min(about['train'], about['held_out']):,}", None, "after"),
            (f"held-out, after the last epoch, n = {about['held_out']:,}", "held_out", "held_out")]
    return Table("Loss in nats an image, published for this set-up and ours.",
                 ["images", "published", "ours", "of it reconstruction", "KL"],
                 [[title, f"{published[key]:.2f}" if published and key else "–",
                   *(report.number(found[part][term], 5) for term in ("loss", "reconstruction", "kl"))]
                  for title, key, part in rows])


def _beta_tables(results):
    found, real, published = results["numbers"]["beta"], results["beta"]["real"], results["published"]
    betas = list(found)
    header = [f"β = {beta}" for beta in betas]

    def row(title, key, digits=4):
        return [title, *(report.number(found[beta][key], digits) for beta in betas)]

    def publicly(title, i):
        cells = published["beta"] if published else {}
        return [title, *(f"{cells[beta][i]:.2f}" if beta in cells else "–" for beta in betas)]

    sharp, diverse = report.number(real["sharpness"]), report.number(real["diversity"])
    return [
        Table("Nats an image; published after 20 epochs, of which images is not known to us; ours after "
              f"{results['settings']['beta_epochs']}, trained on {results['beta']['train']:,} images."
              if published else "Nats an image.",
              ["term", *header],
              [publicly("reconstruction, published", 0), row("reconstruction, ours, held-out", "reconstruction", 5),
               row("reconstruction, ours, training (mean of the epoch)", "train_reconstruction", 5),
               publicly("KL, published", 1), row("KL, ours, held-out", "kl"),
               row("KL, ours, training (mean of the epoch)", "train_kl")]),
        Table(f"In place of adjectives, on {results['beta']['held_out']:,} held-out images.",
              ["measure", *header, "to compare with"],
              [[*row("sharpness of reconstructions", "sharpness_reconstructions"), f"originals {sharp}"],
               [*row("sharpness of samples", "sharpness_samples"), f"originals {sharp}"],
               [*row("diversity of samples", "diversity"), f"originals {diverse}"],
               [*row("silhouette of the classes", "silhouette"), "–1 to 1"],
               [*row("k-NN accuracy of the means", "knn_accuracy"), f"majority {report.number(real['majority'])}"],
               [*row("training, seconds", "seconds"), "–"]])]


def _frozen_table(results):
    found, images = results["numbers"]["vae"], results["real"]
    return Table("Diversity: mean pairwise L2 of decoded images.",
                 ["z", "image of the figure", f"mean over {images['chosen']} images"],
                 [*([f"σ = {sigma}", report.number(each["one"]), report.number(each["mean"])]
                    for sigma, each in found["frozen"].items()),
                  ["prior N(0, I)", "–", report.number(found["images"]["diversity"])],
                  ["held-out images themselves", "–", report.number(images["diversity"])]])


def _fid_table(results):
    found, published = results["numbers"]["vae"]["fid"], results["published"]
    header = ["FID against held-out images", *found, *(["published, untrained"] if published else [])]
    rows = [[title, *(report.number(each[key]) for each in found.values()),
             *([f"{published['fid_untrained']:.2f}" if key == "samples" else "–"] if published else [])]
            for title, key in (("training images (the floor)", "floor"), ("reconstructions", "reconstructions"),
                               ("samples from N(0, I)", "samples"))]
    return Table(f"FID by whose features it is taken with; {results['fid_images']:,} images in each set.", header, rows)


def _difference(results):
    """One sentence on ours beside the published loss, as the numbers have it; None for other data."""
    if not results["published"]:
        return None
    by = results["numbers"]["vae"]["losses"]["held_out"]["loss"]["mean"] - results["published"]["held_out"]
    asked = Settings()
    same = (results["data"]["train"], results["settings"]["epochs"]) == (asked.most_train, asked.epochs)
    return (f"The held-out loss is {abs(by):.2f} nats {'above' if by > 0 else 'below'} the published "
            f"{results['published']['held_out']}. " + (
                "The published set-up is known to us by its description, which leaves open the kernel (ours: "
                f"{results['settings']['kernel']}, padding 1) and what follows the decoder's linear layer (ours: a "
                "ReLU, no norm)." if same else
                f"But that was trained on {asked.most_train:,} images for {asked.epochs} epochs, so this is no "
                "comparison of models."))


def sections(results, pictures):
    """The report's sections from results.json and the pictures."""
    vae, judge, about, real = results["numbers"]["vae"], results["features"], results["data"], results["real"]
    seeds, settings = len(results["seeds"]), results["settings"]
    counted = "one seed" if seeds == 1 else f"mean ± standard deviation of {seeds} seeds"
    each, frozen = vae["images"], vae["frozen"]
    sharp = f"originals {report.number(real['sharpness'])}"
    numbers = Table(f"The VAE with {settings['latent']} latent dimensions, on {about['held_out']:,} held-out images.",
                    ["measure", "ours", "to compare with"],
                    [[title, report.number(each[key]), beside] for title, key, beside in (
                        ("reconstruction error, mean squared", "mse", "–"),
                        ("sharpness of reconstructions", "sharpness_reconstructions", sharp),
                        ("sharpness of samples", "sharpness_samples", sharp),
                        ("diversity of samples", "diversity", f"originals {report.number(real['diversity'])}"),
                        ("training, seconds", "seconds", "–"))])
    parts = ", ".join(f"{report.share(one['mean']['mean'] / each['diversity']['mean'])} for σ = {sigma}"
                      for sigma, one in frozen.items())
    return [
        Section("What was measured", [
            f"All numbers ({counted}) are of images that no model was trained on, unless a row says training; "
            f"{about['train']:,} images were trained on. The loss is the cross-entropy summed over the pixels plus the "
            "KL divergence, for one sampled latent an image.",
            *filter(None, [_difference(results)]),
            "Sharpness is the mean variance of the Laplacian, diversity the mean Euclidean distance of two images "
            f"among {min(settings['diversity_images'], about['held_out']):,}: both to be read beside the originals' "
            "own."],
            [_loss_table(results), numbers]),
        Section("Training", [], [], [pictures["loss_curves"]]),
        Section("Reconstructions and samples", [], [], [pictures["reconstructions"], pictures["samples"]]),
        Section("Frozen mean", [
            "Images decoded around one image's mean are no samples of the model: beside the diversity of samples from "
            f"the prior theirs is {parts}. The model's own q(z|x) has a mean standard deviation of "
            f"{report.number(each['posterior_sd'])} a dimension."],
            [_frozen_table(results)], [pictures["frozen_mean"]]),
        Section("FID", [
            f"Trained: features of a classifier trained on the training images to tell {judge['what']}, "
            f"{report.share(judge['accuracy'], judge['interval'])} right on {judge['images']:,} held-out ones (95 % "
            f"interval) and {report.share(judge['train_accuracy'])} on those it learnt from. The floor is the FID of "
            "real training images, which are among the latter. Values of different features are not comparable."
            + report.weak_features(judge, real["majority"], "this FID decides little here"),
            "Untrained: the same network with its random weights. The value of its FID means nothing, since the FID "
            "goes with the square of the features' scale, which is the initialisation's: over the held-out images they "
            f"have a total variance of {report.number(results['spread']['untrained'], 3)}, the trained ones of "
            f"{report.number(results['spread']['trained'], 3)}, and the FID of these "
            f"samples comes to {vae['fid']['untrained']['samples']['mean']:.2f} at two decimals."],
            [_fid_table(results)]),
        Section("β against β", [
            f"The same network with {settings['beta_latent']} latent dimensions, on {results['beta']['train']:,} "
            f"images of the classes {', '.join(results['beta']['classes'])}; {settings['beta_epochs']} epochs."],
            _beta_tables(results),
            [pictures[name] for name in ("beta_curves", "beta_images", "beta_samples", "beta_latents",
                                         *(f"beta_{beta}" for beta in settings["betas"]))]),
        report.run_section(results)]


# --------------------------------------------------------------------------------------------------------- command line

add_arguments = metrics.add_inception_flag


def run(args):
    """The whole study; returns the exit code. Raises InputError."""
    began = time.monotonic()
    settings = Settings(**(QUICK if args.quick else {}))
    settings = dataclasses.replace(settings, epochs=args.epochs or settings.epochs,
                                   beta_epochs=args.epochs or settings.beta_epochs)
    train, test, how = data.for_study(args, settings, 1, labelled=True)
    classes = common_classes(train, test, settings.beta_classes)
    few_train, few_test = of_classes(train, classes), of_classes(test, classes)
    if len(classes) < 2:
        raise InputError(f"{args.data[-1]}: expected at least two classes both trained on and held out, found "
                         f"{len(classes)} of {len(train.classes)}")
    if args.inception:
        metrics.inception_features(args.inception)  # what is wrong with it should be told before hours of training
    bench = engine.open_bench(args.out, args.device, args.devices, args.precision, args.resume)
    seeds, watched = range(args.seed, args.seed + args.seeds), Watched(few_test, settings)
    net, judge = metrics.train_feature_net(bench, train, test, settings.feature_steps, seed=args.seed)
    fits, after = {}, {}
    for seed in seeds:
        fits[seed] = {"vae": train_one(bench, "vae", settings, train, test, seed, settings.latent, settings.beta,
                                       settings.epochs)}
        after[seed] = scored_after(bench, fits[seed]["vae"], settings, train, seed, len(test))
        for beta in settings.betas:
            fits[seed][beta] = train_one(bench, f"beta{beta}", settings, few_train, few_test, seed,
                                         settings.beta_latent, beta, settings.beta_epochs, watched)
    if not bench.leads:
        return 0
    print("measuring", file=sys.stderr)
    with engine.seeded(args.seed, 8):
        untrained = metrics.FeatureNet(1, net.head.out_features).eval()
    judges = {"trained": lambda x: engine.mapped(net.features, x),
              "untrained": lambda x: engine.mapped(untrained.features, x)}
    spread = {name: float(features(test.pixels).var(0).sum()) for name, features in judges.items()}
    if args.inception:
        judges["Inception"] = metrics.inception_features(args.inception, bench.fabric.device)
    chosen = test.pixels[torch.randperm(len(test), generator=engine.generator(args.seed, 34))[:16]]
    numbers = [{"vae": measure_vae(fits[seed]["vae"], after[seed], settings, train, test, judges, seed, chosen),
                "beta": {str(beta): measure_beta(fits[seed][beta], settings, few_train, few_test, seed)
                         for beta in settings.betas}} for seed in seeds]
    results = {
        **report.run_facts(args, bench, settings, train, test, how), "numbers": metrics.summarise(numbers),
        "published": PUBLISHED if train.classes == data.GARMENTS else None,
        "history": {str(seed): {str(key): fit.history for key, fit in fits[seed].items()} for seed in seeds},
        "features": judge, "spread": spread, "fid_images": min(len(train), len(test)),
        "real": {**measure_real(train, test, settings.diversity_images, args.seed), "chosen": len(chosen)},
        "beta": {"classes": few_train.classes, "train": len(few_train), "held_out": len(few_test),
                 "real": measure_real(few_train, few_test, settings.diversity_images, args.seed)},
        "parameters": sum(p.numel() for p in fits[args.seed]["vae"].modules["vae"].parameters())}
    pictures = draw(fits[args.seed], watched, settings, test, chosen, args.seed, args.signature)
    print(report.write_study(
        bench.folder, "A convolutional VAE, and what β does",
        f"1-32-64 convolutions and back, {settings.latent} latent dimensions, {settings.epochs} epochs on "
        f"{len(train):,} images", sections, pictures, results, began))
    return 0
