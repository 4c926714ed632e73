"""Study 2: a convolutional VAE [1] on Fashion-MNIST [2], beta-VAEs [3] with two latent dimensions, frozen latents, FID.

Described: convolutions 1-32-64 of kernel 3, stride 2, padding 1, batch norm, ReLU; linear layers to 16 means and
log-variances; a linear layer to (64, 7, 7), transposed convolutions 64-32-1 of kernel 4, stride 2, padding 1, between
them batch norm and ReLU, sigmoid; summed binary cross-entropy + beta KL, Adam 1e-3, batches of 128, 25 epochs.
beta 0.1, 0.5 and 1 with two latent dimensions on T-shirts, trousers and sneakers, 20 epochs.
--variant kernel3: transposed convolutions of kernel 3, ReLU after the linear layer, no bias before batch norm.

[1] Kingma & Welling 2014, arXiv:1312.6114            [3] Higgins et al. 2017 (beta-VAE), ICLR
[2] Xiao et al. 2017 (Fashion-MNIST), arXiv:1708.07747
"""
import dataclasses
import itertools

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torchvision.datasets import FashionMNIST

from common.errors import InputError
from studies import figures, losses, metrics, report
from studies.training import StudyModule, adam, decoded_noise, mapped

TITLE = "A convolutional VAE on Fashion-MNIST, and what β does"
LEAD = "1-32-64 convolutions and back, {latent} latent dimensions, {epochs} epochs on {train:,} images"
EXAMPLE = "python -m studies fashion FashionMNIST --out fashion --seeds 3 --variant kernel3"
CHANNELS, LABELLED = 1, True


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greyscale images of 28 x 28 px with pixels in [0, 1]."""
    side: int = 28
    kernel: int = 4             # of the transposed convolutions
    fc_relu: bool = False       # ReLU after the decoder's linear layer
    norm_bias: bool = True      # bias of the layers before batch norm
    latent: int = 16
    beta: float = 1.0
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 25
    seed: int = 42
    betas: tuple = (0.1, 0.5, 1.0)
    beta_classes: tuple = (0, 1, 7)
    beta_latent: int = 2
    beta_epochs: int = 20
    save_interval: int = 50     # batches from frame to frame of the GIFs
    sigmas: tuple = (0.1, 0.5, 1.0)  # of the frozen latents
    most_train: int = 60_000
    most_test: int = 10_000
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


VARIANTS = {"kernel3": {"kernel": 3, "fc_relu": True, "norm_bias": False}}
QUICK = {"most_train": 3000, "most_test": 1000, "epochs": 15, "feature_steps": 200, "save_interval": 5}
TERMS = {"total loss": "loss", "reconstruction": "reconstruction", "KL": "kl"}
PUBLISHED = {
    "by_epoch": {"epoch 5, training": 246.19, "epoch 5, held-out": 247.77, "epoch 25, training": 240.46,
                 "epoch 25, held-out": 242.31},
    "fid": {"samples, untrained features": 0.0},
    "beta": {beta: {"reconstruction, training": reconstruction, "KL, training": kl} for beta, reconstruction, kl in (
        ("0.1", 209.47, 8.76), ("0.5", 209.79, 6.12), ("1.0", 210.55, 5.28))}}
SCATTER_POINTS = 500  # held-out images in the GIFs


class VAE(losses.GaussianVAE, StudyModule):
    """Images (B, 1, 28, 28) -> q(z|x) = N(mean, exp(log-variance)) -> Bernoulli pixels [1]."""

    def __init__(self, latent_dim=16, beta=1.0, lr=1e-3, kernel=4, fc_relu=False, norm_bias=True):
        super().__init__()
        self.save_hyperparameters()
        up = {"kernel_size": kernel, "stride": 2, "padding": 1, "output_padding": kernel % 2}
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1, bias=norm_bias), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, 2, 1, bias=norm_bias), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.Flatten())
        self.fc_mu, self.fc_logvar = nn.Linear(64 * 7 * 7, latent_dim), nn.Linear(64 * 7 * 7, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 64 * 7 * 7), *[nn.ReLU(inplace=True)] * fc_relu, nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, bias=norm_bias, **up), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(32, 1, **up))
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def posterior(self, x):
        """Images (B, 1, 28, 28) -> mean and log-variance of q(z|x), each (B, D)."""
        features = self.encoder(x)
        return self.fc_mu(features), self.fc_logvar(features)

    def training_step(self, batch, index):
        return len(batch[0]) * super().training_step(batch, index)  # the sum is minimised, the mean logged

    def configure_optimizers(self):
        return adam(self.parameters(), lr=self.hparams.lr)


class LatentSnapshotCallback(Callback):
    """Keeps a frame {"epoch", "step", "means" (N, D) of `points`, "reconstructions" uint8 of `originals`} before the
    training, every `save_interval` batches and after the last."""

    def __init__(self, points, originals, save_interval):
        self.points, self.originals, self.save_interval, self.frames = points, originals, save_interval, []

    def on_train_start(self, trainer, module):
        if trainer.global_step == 0:
            self._keep(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = trainer.global_step
        if step % self.save_interval == 0 or step == trainer.estimated_stepping_batches:
            self._keep(trainer, module)

    def _keep(self, trainer, module):
        if trainer.is_global_zero:
            module.eval()
            self.frames.append({
                "epoch": trainer.current_epoch + 1, "step": trainer.global_step,
                "means": mapped(module.encode, self.points),
                "reconstructions": (255 * mapped(module.reconstruct, self.originals)).round().byte()})
            module.train()

    def state_dict(self):
        return {"frames": self.frames}

    def load_state_dict(self, state):
        self.frames = state["frames"]


def common_classes(train, test, wanted):
    """Sorted indices of classes: `wanted` if both sets have them, else the first three that both have. Raises
    InputError for fewer than two."""
    common = sorted(set(train.labels.tolist()) & set(test.labels.tolist()))
    if len(common) < 2:
        raise InputError(f"fashion: expected two classes or more both trained on and held out, found {len(common)}")
    return sorted(wanted) if set(wanted) <= set(common) else common[:3]


def of_classes(images, chosen):
    """The images of the classes `chosen`, sorted indices, which become 0, 1, ..."""
    indices = torch.tensor(chosen)
    kept = images.subset(torch.isin(images.labels, indices))
    return dataclasses.replace(kept, labels=torch.bucketize(kept.labels, indices),
                               classes=[images.classes[i] for i in chosen])


def first_of_each(images, n):
    """The first n images of each class, as one set."""
    return images.subset(torch.cat([(images.labels == i).nonzero().flatten()[:n] for i in range(len(images.classes))]))


def train(study):
    """{"features": (function, facts), "few": (training, held-out) images of the beta-VAEs, "points" and "originals":
    images of the GIFs, "frames": {beta: frames}, "models": {(variant, seed, "vae" or beta): VAE}}."""
    settings = study.settings
    chosen = common_classes(study.train, study.test, settings.beta_classes)
    few = of_classes(study.train, chosen), of_classes(study.test, chosen)
    points, originals = few[1].at_most(SCATTER_POINTS, 0), first_of_each(few[1], 9 // len(chosen))
    features, models, frames = metrics.train_feature_extractor(study), {}, {}

    def fit(name, variant, seed, images, latent, beta, epochs, callbacks=()):
        torch.manual_seed(seed)
        network = study.variants[variant]
        model = VAE(latent, beta, network.lr, network.kernel, network.fc_relu, network.norm_bias)
        return study.run.fit(f"{name}_{variant}_seed{seed}", model, *images, epochs=epochs, seed=seed,
                             batch_size=settings.batch_size, callbacks=callbacks)

    for variant, seed in itertools.product(study.variants, study.seeds):
        models[variant, seed, "vae"] = fit("vae", variant, seed, (study.train, study.test), settings.latent,
                                           settings.beta, settings.epochs)
        for beta in settings.betas:
            watch = LatentSnapshotCallback(points.pixels, originals.pixels, settings.save_interval)
            models[variant, seed, beta] = fit(f"beta{beta}", variant, seed, few, settings.beta_latent, beta,
                                              settings.beta_epochs, [watch])
            frames.setdefault(beta, watch.frames)  # of the described network's first seed
    return {"features": features, "few": few, "points": points, "originals": originals, "frames": frames,
            "models": models}


def samples(model, n, seed, sigma=1.0):
    """n images (n, 1, 28, 28) in [0, 1], decoded from z = sigma * noise, noise ~ N(0, I)."""
    return decoded_noise(model.decode, model.hparams.latent_dim, n, seed, sigma)


def frozen(model, sigmas, n, seed):
    """{name: n images} of the prior, and of mean 0 with each sigma, which share other noise."""
    return {"z ~ N(0, I)": samples(model, n, seed),
            **{f"μ = 0, σ = {sigma}": samples(model, n, seed + 1, sigma) for sigma in sigmas}}


def untrained_features(seed):
    """A function from images to 128 features each: three convolutions with random weights and pooling."""
    torch.manual_seed(seed)
    net = nn.Sequential(*metrics.FeatureExtractor(1, 0).features[:9], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return lambda images: mapped(net, images)


def measure_model(model, train, test, seed):
    """Losses of the last epoch, and numbers of reconstructions, of samples of the prior, and of the means."""
    reconstructed, drawn = mapped(model.reconstruct, test.pixels), samples(model, len(test), seed)
    train_z, test_z = (mapped(model.encode, images.pixels) for images in (train, test))
    return {**{f"{name}, {part}": values[-1] for name, term in TERMS.items()
               for part, values in model.curves(term).items()},
            "mean squared error": float(losses.squared_error(reconstructed, test.floats()).mean()),
            "sharpness of reconstructions": metrics.sharpness(reconstructed),
            "sharpness of samples": metrics.sharpness(drawn),
            "diversity of samples": metrics.mean_pairwise_l2(drawn),
            "silhouette": metrics.silhouette(test_z, test.labels),
            "k-NN accuracy": metrics.knn_accuracy(train_z, train.labels, test_z, test.labels),
            "seconds": model.seconds}


def real_numbers(train, test):
    """The same of the held-out images themselves; for k-NN, that of always naming the most frequent class."""
    sharpness = metrics.sharpness(test.floats())
    return {"sharpness of reconstructions": sharpness, "sharpness of samples": sharpness,
            "diversity of samples": metrics.mean_pairwise_l2(test.at_most(1000, 0).floats()),
            "k-NN accuracy": metrics.majority_baseline(train.labels, test.labels)}


def measure_seed(study, trained, extractors, variant, seed):
    """Numbers of the VAE and of the beta-VAEs of a seed."""
    models, train, test = trained["models"], study.train, study.test
    vae, some = models[variant, seed, "vae"], test.at_most(1000, seed)
    fakes = {"samples": samples(vae, len(some), seed), "reconstructions": mapped(vae.reconstruct, some.pixels)}
    return {
        "by_epoch": {f"epoch {i}, {part}": values[i - 1] for i in range(1, len(vae.history) + 1)
                     if i % 5 == 0 or i == len(vae.history) for part, values in vae.curves("loss").items()},
        "vae": measure_model(vae, train, test, seed),
        "frozen": {name: metrics.mean_pairwise_l2(images)
                   for name, images in frozen(vae, study.settings.sigmas, 1000, seed).items()},
        "fid": {f"{name}, {extractor} features": value for extractor, extract in extractors.items()
                for name, value in metrics.fids(extract, train, some, fakes, seed).items()},
        "beta": {str(beta): measure_model(models[variant, seed, beta], *trained["few"], seed)
                 for beta in study.settings.betas}}


def measure(study, trained):
    """{"numbers": {variant: {...: {"mean", "sd", "values"}}}, ...} for results.json."""
    (extract, about), few = trained["features"], trained["few"]
    extractors = {"untrained": untrained_features(study.args.seed), "trained": extract}
    return {
        "numbers": {variant: metrics.summarise([measure_seed(study, trained, extractors, variant, seed)
                                                for seed in study.seeds]) for variant in study.variants},
        "published": PUBLISHED if study.train.classes == FashionMNIST.classes else {},
        "features": about, "real": real_numbers(study.train, study.test),
        "beta": {"classes": few[0].classes, "train": len(few[0]), "held_out": len(few[1]), "real": real_numbers(*few)},
        "history": {" ".join(map(str, key)): model.history for key, model in trained["models"].items()}}


def loss_curves(models):
    """A Figure of the total loss, reconstruction and KL of models {name: VAE}, training and held-out."""
    return figures.curves_figure({
        title: {label: values for name, model in models.items() for label, values in model.curves(term, name).items()}
        for title, term in TERMS.items()}, "nats an image")


def latent_frames(frames, points, originals, beta):
    """Figures of frames of LatentSnapshotCallback for a GIF, all on the same axes."""
    shown = figures.spread(frames)
    limit = max(2.1, *(1.05 * float(frame["means"].abs().quantile(0.995)) for frame in shown))
    return (figures.latent_frame(
        frame["means"], points.labels, points.classes, limit,
        {"original": originals.floats(), "reconstr.": frame["reconstructions"] / 255},
        f"β = {beta}, epoch {frame['epoch']}, batch {frame['step']:,}") for frame in shown)


def sections(study, trained, results, picture):
    """The report's sections; the figures are of the first seed's models, the GIFs of the described ones."""
    data, few, points = results["data"], results["beta"], trained["points"]
    sources = {"published": results["published"], **results["numbers"]}

    def compared(key, caption, **more):
        columns = {name: found[key] for name, found in sources.items() if key in found}
        return report.compared(caption, {**columns, **more}, digits=5)

    betas = {f"β = {beta}, {name}": found["beta"][str(beta)] for beta in study.settings.betas
             for name, found in sources.items() if found}
    garments = dict(zip(study.train.classes[:10], first_of_each(study.train, 1).floats()[:, None]))
    return [
        report.Section("Training", (), [
            compared("by_epoch", f"Total loss, nats an image; {data['train']:,} training and {data['held_out']:,} "
                     f"held-out images (published: 60,000 and 10,000); {report.seeds_text(results)}."),
            compared("vae", "Last epoch. Losses in nats an image; sharpness: variance of the Laplacian; diversity: "
                     "mean pairwise L2; k-NN of real images: always naming the most frequent class.",
                     **{"real images": results["real"]})],
            [picture("dataset", figures.grid_figure(garments, 1, 5),
                     "The first training image of each class, under its name.")]),
        report.Section("β-VAE", [
            f"{study.settings.beta_latent} latent dimensions, {study.settings.beta_epochs} epochs on {few['train']:,} "
            f"images of {', '.join(few['classes'])}; {few['held_out']:,} held out."],
            [report.compared("As above. The published numbers do not say of which images they are.",
                             {**betas, "real images": few["real"]}, digits=5)],
            [picture(f"vae_beta_{beta}_evolution", latent_frames(frames, points, trained["originals"], beta),
                     f"β = {beta}: means of {len(points):,} held-out images in the course of training, all frames on "
                     "the same axes. Grey circles: one and two standard deviations of N(0, I).")
             for beta, frames in trained["frames"].items()]),
        report.Section("Frozen latent parameters", [
            "z = μ + σ ε with μ = 0. For σ = 1 that is N(0, I), the prior itself: its row differs from the first by "
            "the noise drawn."], [compared("frozen", "Mean pairwise L2 of 1,000 images each.")]),
        report.Section("FID", [
            report.features_text(results["features"]),
            "Untrained: three convolutions with random weights and pooling to 128 features, as published. Its FID has "
            "the scale of the random features, so that only the ratios of its rows mean something."],
            [compared("fid", f"FID of {min(1000, data['held_out']):,} images each against as many held-out ones.")]),
        *(report.Section(f"Figures: {variant}", (), (), pictures(variant, study, trained, picture))
          for variant in study.variants)]


def pictures(variant, study, trained, picture):
    """The pictures of a variant's models."""
    seed, test, settings, models = study.args.seed, study.test, study.settings, trained["models"]
    points, originals, chosen = trained["points"], trained["originals"], test.at_most(16, seed)
    vae, betas = models[variant, seed, "vae"], {f"β = {beta}": models[variant, seed, beta] for beta in settings.betas}

    def add(name, figure, caption):
        return picture(name if variant == "described" else f"{name}_{variant}", figure, f"{variant}: {caption}")

    return [
        add("losses", loss_curves({"": vae}), "losses against epochs, means over the epoch in training and over the "
            "held-out images after it."),
        add("reconstructions", figures.grid_figure({
            "original": chosen.floats(), "reconstruction": mapped(vae.reconstruct, chosen.pixels)}, per_row=1),
            "16 held-out images drawn at random, and below them their means decoded."),
        add("samples", figures.grid_figure({
            "z ~ N(0, I)": samples(vae, 64, seed), "held-out images": test.at_most(64, seed).floats()}),
            "64 samples of the prior, not selected, beside held-out images drawn at random."),
        *(add(f"frozen_{n}", figures.grid_figure(frozen(vae, settings.sigmas, n, seed), columns, per_row),
              f"effect of frozen latent parameters, {n} images each: z = σ ε, the same noise ε for each σ.")
          for n, columns, per_row in ((64, 16, 1), (16, 4, 2))),
        add("beta_losses", loss_curves(betas), "losses against epochs for each β; the total is reconstruction + β KL."),
        add("beta_reconstructions", figures.rows_figure({
            "original": originals.floats(),
            **{name: mapped(model.reconstruct, originals.pixels) for name, model in betas.items()}}),
            "the first held-out images of each class, decoded from two numbers each."),
        add("beta_samples", figures.grid_figure({name: samples(model, 64, seed) for name, model in betas.items()}),
            "the same 64 latents from N(0, I), decoded by each model."),
        add("beta_latents", figures.scatter_figure({
            name: mapped(model.encode, points.pixels) for name, model in betas.items()}, points.labels, points.classes),
            f"means of {len(points):,} held-out images by class, each panel on its own scale.")]
