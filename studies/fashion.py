"""Study 2: a convolutional VAE [1] on Fashion-MNIST [2], beta-VAEs [3] with two latent dimensions, frozen latents, FID.

Described: convolutions 1-32-64 (kernel 3, stride 2, padding 1), each with batch norm and ReLU; linear layers to 16
means and log-variances; a linear layer to (64, 7, 7); transposed convolutions 64-32-1 (kernel 4, stride 2, padding 1),
batch norm and ReLU between them; sigmoid. Summed binary cross-entropy + beta KL, Adam 1e-3, batches of 128, 25 epochs.
Then beta 0.1, 0.5 and 1 with two latent dimensions on T-shirts, trousers and sneakers, 20 epochs.
FOLDER/vae_standard.pth has the weights of the first VAE; the GIFs show the latents of the others during training.

[1] Kingma & Welling 2014, arXiv:1312.6114            [3] Higgins et al. 2017 (beta-VAE), ICLR
[2] Xiao et al. 2017 (Fashion-MNIST), arXiv:1708.07747
"""
import dataclasses
import io
import math

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torchvision.datasets import FashionMNIST

from common.errors import InputError
from common.files import write_files
from studies import figures, losses, metrics, report
from studies.report import Claim, Section
from studies.training import StudyModule, adam, decode_prior, map_batches, on_device


@dataclasses.dataclass(frozen=True)
class Settings:
    """The described experiment, on greyscale images of 28 x 28 px with pixels in [0, 1]."""
    side: int = 28
    latent: int = 16
    beta: float = 1.0
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 25
    seed: int = 42
    betas: tuple = (0.1, 0.5, 1.0)
    beta_classes: tuple = (0, 1, 7)  # T-shirt/top, Trouser, Sneaker
    beta_latent: int = 2
    beta_epochs: int = 20
    sigmas: tuple = (0.1, 0.5, 1.0)  # of the frozen latents
    most_train: int = 60_000
    most_test: int = 10_000
    feature_steps: int = 1500        # batches that the classifier behind the FID is trained for


class VAE(losses.GaussianVAE, StudyModule):
    """Images (B, 1, 28, 28) -> q(z|x) = N(mean, exp(log-variance)) -> Bernoulli pixels [1]."""

    def __init__(self, latent_dim=16, beta=1.0, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.latent = latent_dim
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),   # (B, 32, 14, 14)
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True),  # (B, 64, 7, 7)
            nn.Flatten())
        self.fc_mu, self.fc_logvar = nn.Linear(64 * 7 * 7, latent_dim), nn.Linear(64 * 7 * 7, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1))  # logits of the pixels; `decode` applies the sigmoid
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def posterior(self, x):
        """Images (B, 1, 28, 28) -> mean and log-variance of q(z|x), each (B, D)."""
        features = self.encoder(x)
        return self.fc_mu(features), self.fc_logvar(features)

    def losses(self, x, y):
        """BCE(x, x') + beta KL(q(z|x) || N(0, I)) [1, 3] and its terms, in nats, means over the batch:
        BCE = -sum_i [x_i log x'_i + (1 - x_i) log(1 - x'_i)], summed over the pixels,
        KL = -1/2 sum_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2), summed over the latent dimensions."""
        mean, log_variance = self.posterior(x)
        z = losses.reparameterize(mean, log_variance)  # mean + sigma * noise: gradients reach mean and sigma
        reconstruction = losses.binary_cross_entropy(self.decoder(z), x).mean()
        kl = losses.kl_divergence(mean, log_variance).mean()
        return {"loss": reconstruction + self.hparams.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def training_step(self, batch, index):
        return len(batch[0]) * super().training_step(batch, index)  # the sum is minimised, the mean logged

    def configure_optimizers(self):
        return adam(self.parameters(), lr=self.hparams.lr)


TITLE = "A convolutional VAE, and what β does to its latents"
SUBTITLE = "Convolutions 1-32-64 and back, {latent} latent dimensions, {epochs} epochs, {train:,} images of {source[0]}"
EXAMPLE = "python -m studies fashion FashionMNIST --out fashion --seeds 3"
CHANNELS, NEEDS_CLASSES, TRAINS_ON_BOTH = 1, True, False
VARIANTS = {}
QUICK = {"most_train": 3000, "most_test": 1000, "epochs": 15, "feature_steps": 200}
TERMS = {"total loss": "loss", "reconstruction loss": "reconstruction", "KL": "kl"}
PUBLISHED = {"losses": {
    "epoch 5, training": 246.19, "epoch 5, held-out": 247.77, "epoch 25, training": 240.46,
    "epoch 25, held-out": 242.31, "β = 0.1, reconstruction loss": 209.47, "β = 0.1, KL": 8.76,
    "β = 0.5, reconstruction loss": 209.79, "β = 0.5, KL": 6.12, "β = 1.0, reconstruction loss": 210.55,
    "β = 1.0, KL": 5.28}, "fid": {"samples, untrained features": 0.0}}
CLOSE, STABLE, COLLAPSED = 0.02, 0.05, 0.1  # held-out to training loss; range of the KL, five epochs; KL in nats
VARIED = 2 / 3  # mean pairwise L2 of samples to that of held-out images; blur alone makes it smaller than 1
TOLERANCE, KL_TOLERANCE = 0.01, 0.05  # relative differences from published losses
FRAMES, STRIP, POINTS = 44, 8, 1500   # of a GIF, at most; images in a frame; held-out images in a scatter plot


class LatentSnapshotCallback(Callback):
    """Keeps frames {step: {"epoch", "batch" in it, "batches" of it, "means" (B, D), "labels" (B,), "originals" and
    "reconstructions" uint8 (STRIP, 1, 28, 28)}} of the current mini-batch: before training and after steps 1, 2, 3, ...
    to the last, evenly spaced in logarithm."""

    def __init__(self):
        self.frames = {}

    def on_train_start(self, trainer, module):
        self.steps = np.geomspace(1, trainer.estimated_stepping_batches, FRAMES).round()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 0:
            self._keep(trainer, module, batch, 0)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step in self.steps:
            self._keep(trainer, module, batch, batch_idx + 1)

    @torch.no_grad()
    def _keep(self, trainer, module, batch, number):
        if trainer.is_global_zero:
            x, y = batch
            module.eval()  # else batch norm would count these images twice
            images = {"originals": x[:STRIP], "reconstructions": module.reconstruct(x[:STRIP])}
            self.frames[trainer.global_step] = {
                "epoch": trainer.current_epoch + 1, "batch": number, "batches": trainer.num_training_batches,
                "means": module.encode(x).float().cpu(), "labels": y.byte().cpu(),
                **{name: (255 * one.float()).round().byte().cpu() for name, one in images.items()}}
            module.train()

    def state_dict(self):
        return {"frames": self.frames}

    def load_state_dict(self, state):
        self.frames = state["frames"]


def of_classes(train, test, wanted):
    """The images of both sets in the classes `wanted` if both have them, else in the first three that both have; these
    become classes 0, 1, ... Raises InputError for fewer than two."""
    common = sorted(set(train.labels.tolist()) & set(test.labels.tolist()))
    if len(common) < 2:
        raise InputError(f"fashion: expected two classes or more both trained on and held out, found {len(common)}")
    chosen = torch.tensor(sorted(wanted) if set(wanted) <= set(common) else common[:3])
    return [dataclasses.replace(kept, labels=torch.bucketize(kept.labels, chosen),
                                classes=[kept.classes[i] for i in chosen])
            for kept in (images.subset(torch.isin(images.labels, chosen)) for images in (train, test))]


def first_of_each(images, n):
    """The first n images of each class, as one set."""
    return images.subset(torch.cat([(images.labels == i).nonzero().flatten()[:n] for i in range(len(images.classes))]))


def reloaded(model, path):
    """A fresh VAE with the weights of `model` from the file `path`, into which they go first: a plain state_dict."""
    buffer, fresh = io.BytesIO(), VAE(latent_dim=model.latent)
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    write_files({str(path): buffer.getvalue()})
    fresh.load_state_dict(torch.load(str(path), map_location="cpu", weights_only=True))
    fresh.history = model.history
    return on_device(fresh, model.device).eval()


def train(study):
    """{"features": (function, facts), "beta_images": (training, held-out) images of the beta-VAEs, "models": {(seed,
    "vae" or beta): VAE}, "frames": {beta: frames}}. The first seed's "vae" comes from vae_standard.pth; the frames are
    its."""
    settings, models, frames = study.settings, {}, {}
    beta_images = of_classes(study.train, study.test, settings.beta_classes)
    features = metrics.train_feature_extractor(study)

    def fit(name, seed, images, latent, beta, epochs, callbacks=()):
        torch.manual_seed(seed)
        return study.run.fit(f"{name}_seed{seed}", VAE(latent, beta, settings.lr), *images, epochs=epochs, seed=seed,
                             batch_size=settings.batch_size, callbacks=callbacks)

    for seed in study.seeds:
        vae = fit("vae", seed, (study.train, study.test), settings.latent, settings.beta, settings.epochs)
        saved = seed == study.seeds[0] and study.run.is_global_zero
        models[seed, "vae"] = reloaded(vae, study.run.folder / "vae_standard.pth") if saved else vae
        for beta in settings.betas:
            snapshots = LatentSnapshotCallback()
            models[seed, beta] = fit(f"beta{beta}", seed, beta_images, settings.beta_latent, beta, settings.beta_epochs,
                                     [snapshots])
            frames.setdefault(beta, snapshots.frames)
    return {"features": features, "beta_images": beta_images, "models": models, "frames": frames}


def frozen(model, sigmas, n, seed):
    """{name: n images} of z ~ N(0, I), and of z = sigma * noise, mean 0, for each sigma with the same other noise."""
    return {"z ~ N(0, I)": decode_prior(model.decode, model.latent, n, seed), **{
        f"μ = 0, σ = {sigma}": decode_prior(model.decode, model.latent, n, seed + 1, sigma) for sigma in sigmas}}


def untrained_features(seed):
    """A function from images to 128 features each: three convolutions with random weights and pooling."""
    torch.manual_seed(seed)
    net = nn.Sequential(*metrics.FeatureExtractor(1, 0).features[:9], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return lambda images: map_batches(net, images)


def measure_model(model, test, seed):
    """Losses of the last epoch, and numbers of reconstructions, of samples from N(0, I), and of the means."""
    reconstructed = map_batches(model.reconstruct, test.pixels)
    drawn = decode_prior(model.decode, model.latent, len(test), seed)
    return {**{f"{name}, {part}": values[-1] for name, term in TERMS.items()
               for part, values in model.curves(term).items()},
            "mean squared error": float(losses.mse_per_image(reconstructed, test.floats()).mean()),
            "sharpness of reconstructions": metrics.sharpness(reconstructed),
            "sharpness of samples": metrics.sharpness(drawn),
            "diversity of samples": metrics.mean_pairwise_l2(drawn),
            "silhouette of the classes": metrics.silhouette(map_batches(model.encode, test.pixels), test.labels),
            "seconds": model.seconds}


def measure_seed(study, trained, extractors, seed):
    """Numbers of the VAE and of the beta-VAEs of a seed."""
    models, some, settings = trained["models"], study.test.subsample(1000, seed), study.settings
    vae, betas = models[seed, "vae"], {str(beta): measure_model(models[seed, beta], trained["beta_images"][1], seed)
                                       for beta in settings.betas}
    fakes = {"samples": decode_prior(vae.decode, vae.latent, len(some), seed),
             "reconstructions": map_batches(vae.reconstruct, some.pixels)}
    return {
        "losses": {
            **{f"epoch {i}, {part}": values[i - 1] for i in range(1, len(vae.history) + 1)
               if i % 5 == 0 or i == len(vae.history) for part, values in vae.curves("loss").items()},
            **{f"β = {beta}, {term}": found[f"{term}, training"] for beta, found in betas.items()
               for term in ("reconstruction loss", "KL")}},
        "vae": measure_model(vae, study.test, seed), "beta": betas,
        "frozen": {name: metrics.mean_pairwise_l2(images)
                   for name, images in frozen(vae, settings.sigmas, 1000, seed).items()},
        "fid": {f"{name}, {extractor} features": value for extractor, extract in extractors.items()
                for name, value in metrics.fids(extract, study.train, some, fakes, seed).items()}}


def measure(study, trained):
    """{"numbers": {...: {"mean", "sd", "values"}}, ...} for results.json; "real" has those of held-out images."""
    (extract, facts), beta_images = trained["features"], trained["beta_images"]
    extractors, real = {"untrained": untrained_features(study.args.seed), "trained": extract}, {}
    for key, images in (("vae", study.test), ("beta", beta_images[1])):
        sharpness = metrics.sharpness(images.floats())
        real[key] = {"sharpness of reconstructions": sharpness, "sharpness of samples": sharpness,
                     "diversity of samples": metrics.mean_pairwise_l2(images.subsample(1000, 0).floats())}
    return {
        "numbers": metrics.summarise([measure_seed(study, trained, extractors, seed) for seed in study.seeds]),
        "published": PUBLISHED if study.train.classes == FashionMNIST.classes else {}, "features": facts, "real": real,
        "beta_data": {"classes": beta_images[0].classes, "train": len(beta_images[0]), "held_out": len(beta_images[1])},
        "history": {" ".join(map(str, key)): model.history for key, model in trained["models"].items()}}


def conclusions(study, trained, results):
    """The document's Claims: two on the losses, six on β, one on reconstructions, two on samples, two on σ, two on the
    FID and, where the data are Fashion-MNIST, one on the published losses."""
    numbers, data, settings = results["numbers"], results["data"], study.settings
    betas, sigmas = (", ".join(map(str, values)) for values in (settings.betas, settings.sigmas))
    train, test, kl = (np.mean([trained["models"][seed, "vae"].curve(name) for seed in study.seeds], 0).tolist()
                       for name in ("train_loss", "test_loss", "train_kl"))
    gap, spread, n = test[-1] / train[-1] - 1, 1 - min(kl[-5:]) / max(kl[-5:]), len(kl)
    falling = report.trend(train) == report.trend(test) == "falls"
    prior, *fixed = numbers["frozen"].values()
    low, high, real = (numbers["fid"][key]["mean"] for key in (
        "samples, untrained features", "samples, trained features", "training images, trained features"))
    claims = [
        Claim("Train and test loss curves are close and smoothly decreasing",
              f"The training loss goes from {train[0]:.1f} to {train[-1]:.1f} nats, the held-out loss from "
              f"{test[0]:.1f} to {test[-1]:.1f}, {report.percent(abs(gap))} {'above' if gap > 0 else 'below'} it.",
              None if n < 2 else falling and abs(gap) <= CLOSE, "losses"),
        Claim("KL term stabilises at a positive value",
              f"The KL in training ends at {kl[-1]:.3g} nats; over epochs {max(1, n - 4)} to {n} it has a range of "
              f"{report.percent(spread)}.", None if n < 6 else spread <= STABLE and kl[-1] > COLLAPSED, "losses")]
    for published, key, expected, figure in (
            ("As β increases, KL loss decreases", "KL, training", "falls", "beta_losses"),
            ("As β increases, recon loss slightly increases", "reconstruction loss, training", "rises", "beta_losses"),
            ("Image sharpness: High, Medium, Lower (reconstructions)", "sharpness of reconstructions", "falls",
             "beta_reconstructions"),
            ("Image sharpness: High, Medium, Lower (samples)", "sharpness of samples", "falls", "beta_samples"),
            ("Diversity: Low, Medium, High", "diversity of samples", "rises", "beta_samples"),
            ("Cluster separation: Poor, Moderate, Good", "silhouette of the classes", "rises", "beta_latents")):
        values = [numbers["beta"][str(beta)][key] for beta in settings.betas]
        found = f"For β = {betas} the {key.replace(',', ' in')} is {report.join_numbers(values, 4)}."
        claims.append(Claim(published, found, metrics.agrees_with_trend(expected, *zip(values, values[1:])), figure))
    for published, key, least, figure in (
            ("Reconstructions lose some fine details", "sharpness of reconstructions", 0, "reconstructions"),
            ("Samples: some blur / lack of fine detail", "sharpness of samples", 0, "samples"),
            ("Samples: good variety", "diversity of samples", VARIED, "samples")):
        share = numbers["vae"][key]["mean"] / (results["real"]["vae"][key] or math.nan)
        found = f"The {key} is {report.percent(share)} of that of the held-out images."
        claims.append(Claim(published, found, least <= share < 1, figure))
    claims += [
        Claim("σ = 0.1: low diversity … σ = 1.0: highest diversity", f"For σ = {sigmas} the mean pairwise L2 is "
              f"{report.join_numbers(fixed)}.", metrics.agrees_with_trend("rises", *zip(fixed, fixed[1:])),
              "frozen_64"),
        Claim("The standard z ~ N(0, I) case falls between σ = 0.5 and σ = 1.0", "For z ~ N(0, I), which is σ = 1 with "
              f"other noise, the mean pairwise L2 is {report.join_numbers([prior])}.", metrics.agrees_with_trend(
                  "rises", (fixed[-2], prior), (prior, fixed[-1])) or False, "frozen_64"),
        Claim("FID with the untrained feature extractor: 0.00",
              f"With untrained features the FID of samples is {low:.2g}.", low < 0.005, "samples"),
        Claim("A score of 0.00 is clearly not realistic", f"With trained features the FID of samples is {high:.3g}, "
              f"that of training images {real:.3g}.", None if results["features"]["weak"] else high > 2 * real,
              "samples")]
    apart = {row: abs(numbers["losses"][row]["mean"] / value - 1)
             for row, value in results["published"].get("losses", {}).items() if row in numbers["losses"]}
    if apart:
        same = settings == Settings() and data["train"] == settings.most_train
        claims.append(Claim(
            "The losses in the tables below", f"They differ by {report.percent(max(apart.values()))} at most, with "
            f"{data['train']:,} training images and {settings.epochs} epochs.", None if not same else all(
                value <= (KL_TOLERANCE if "KL" in row else TOLERANCE) for row, value in apart.items())))
    return claims


def loss_curves(models):
    """A Figure of the total loss, reconstruction loss and KL of models {name: VAE}, training and held-out."""
    return figures.curves_figure({
        title: {label: values for name, model in models.items() for label, values in model.curves(term, name).items()}
        for title, term in TERMS.items()}, "nats per image")


def latent_frames(frames, classes):
    """Figures of frames {title: those of LatentSnapshotCallback} for a GIF: side by side, all on the same axes."""
    limit = max(2.2, *(1.05 * frame["means"].abs().max().item() for kept in frames.values() for frame in kept.values()))
    for step in sorted(set.intersection(*map(set, frames.values()))):
        facts = "epoch {epoch}, batch {batch} of {batches}" if step else "before training"
        yield figures.latent_frame({
            f"{title}, {facts.format(**kept[step])}": (kept[step]["means"], kept[step]["labels"], {
                "original": kept[step]["originals"] / 255, "reconstr.": kept[step]["reconstructions"] / 255})
            for title, kept in frames.items()}, classes, limit)


def evolution(frames):
    """Two sentences on the first and the last of frames {title: those of LatentSnapshotCallback}."""
    first, last = ([kept[end(kept)] for kept in frames.values()] for end in (min, max))
    apart, wide = (
        [report.join_numbers([number(frame["means"], frame["labels"]) for frame in ends], 2) for ends in (first, last)]
        for number in (metrics.silhouette, lambda means, _: means.std(0).mean().item()))
    return (f"The silhouette of the classes is {apart[0]} in the first frame and {apart[1]} in the last. The means "
            f"have a standard deviation of {wide[0]} and {wide[1]}, where N(0, I) has 1.")


def sections(study, trained, results, picture):
    """The report's sections; the figures are of the first seed's models."""
    settings, seed, test, beta_test = study.settings, study.args.seed, study.test, trained["beta_images"][1]
    numbers, data, real, models = results["numbers"], results["data"], results["real"], trained["models"]
    vae, betas = models[seed, "vae"], {f"β = {beta}": models[seed, beta] for beta in settings.betas}
    frames = {f"β = {beta}": kept for beta, kept in trained["frames"].items()}
    gifs = {**{f"vae_beta_{title[4:]}_evolution": {title: kept} for title, kept in frames.items()},
            "vae_betas_evolution": frames}
    points, chosen = beta_test.subsample(POINTS, seed), test.subsample(16, seed)
    firsts, originals = first_of_each(study.train, 1), first_of_each(beta_test, 9 // len(beta_test.classes))
    means = {title: map_batches(model.encode, points.pixels) for title, model in betas.items()}

    def table(key, caption, digits=4, word=""):
        published = {"published": results["published"][key]} if key in results["published"] else {}
        return report.comparison_table(caption, {**published, "ours": numbers[key]},
                               {row: row for row in numbers[key] if word in row}, digits)

    return [
        Section("Training", [], [
            table("losses", f"Total loss, nats per image; {data['train']:,} training and {data['held_out']:,} held-out "
                  f"images; {report.seeds_text(results)}.", 5, "epoch"),
            report.comparison_table(
                "After the last epoch. Sharpness: variance of the Laplacian; diversity: mean pairwise L2.",
                {"ours": numbers["vae"], "held-out images": real["vae"]})], [
            picture("dataset", figures.grid_figure({
                study.train.classes[y]: x[None] for x, y in zip(firsts.floats()[:10], firsts.labels)}, 1, 5),
                "The first training image of each class, below its name."),
            picture("losses", loss_curves({"": vae}), "Losses by epoch; those in training are means over the epoch.")]),
        Section("β-VAE", [
            f"{settings.beta_latent} latent dimensions, {settings.beta_epochs} epochs on "
            f"{results['beta_data']['train']:,} images of {', '.join(beta_test.classes)}; {len(beta_test):,} held out."
        ], [
            table("losses", "Reconstruction loss in training, last epoch, nats per image.", 5, "reconstruction"),
            table("losses", "KL in training, last epoch, nats per image.", 3, "KL"),
            report.comparison_table("Numbers as above.", {
                **{f"β = {beta}": found for beta, found in numbers["beta"].items()},
                "held-out images": real["beta"]})], [
            *(picture(name, latent_frames(shown, points.classes), f"{', '.join(shown)}: means of the current mini-"
                      "batch by class, its first images above their reconstructions. Circles: 1 and 2 standard "
                      "deviations of N(0, I).", evolution(shown)) for name, shown in gifs.items()),
            picture("beta_losses", loss_curves(betas), "Losses by epoch for each β; the total loss is reconstruction "
                    "loss + β KL."),
            picture("beta_reconstructions", figures.rows_figure({"original": originals.floats(), **{
                title: map_batches(model.reconstruct, originals.pixels) for title, model in betas.items()}}),
                "The first held-out images of each class above their reconstructions from two numbers."),
            picture("beta_samples", figures.grid_figure({
                title: decode_prior(model.decode, model.latent, 64, seed) for title, model in betas.items()}),
                "The same 64 latents z ~ N(0, I), decoded by each model."),
            picture("beta_latents", figures.scatter_figure(
                means, points.labels, points.classes, max(2.2, *(1.05 * z.abs().max().item() for z in means.values()))),
                f"Means of {len(points):,} held-out images by class. Circles as above.")]),
        Section("Reconstructions and samples", [], [], [
            picture("reconstructions", figures.rows_figure({
                "original": chosen.floats(), "reconstr.": map_batches(vae.reconstruct, chosen.pixels)}, 8),
                "Held-out images drawn at random, each above its reconstruction.",
                f"The mean squared error is {report.number(numbers['vae']['mean squared error'])}."),
            picture("samples", figures.grid_figure({
                "z ~ N(0, I)": decode_prior(vae.decode, vae.latent, 64, seed),
                "held-out images": test.subsample(64, seed).floats()}),
                "64 samples, not selected, next to held-out images drawn at random.")]),
        Section("Frozen latent parameters", ["z = μ + σ ε with μ = 0 and ε ~ N(0, I)."], [
            table("frozen", "Mean pairwise L2 of 1,000 images.")], [
            picture(f"frozen_{n}", figures.grid_figure(
                frozen(vae, settings.sigmas, n, seed), columns, per_row, "Effect of Frozen Latent Parameters"),
                f"{n} images for each condition; each σ has the same noise.")
            for n, columns, per_row in ((64, 16, 1), (16, 4, 2))]),
        Section("FID", [
            report.features_text(results["features"]), "The untrained features, as published: three convolutions with "
            "random weights and pooling to 128."],
            [table("fid", f"FID of {min(1000, data['held_out']):,} images against as many held-out ones.", 3)])]
