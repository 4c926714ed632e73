"""Study 3: what photos are turned into, and what that is good for: a VAE, a VQ-VAE, classifiers, a mixture of latents.

Described: a VAE [1] of photos of 64 px with 128 latents, reconstructions that average 1, 5 and 10 decoded samples of
q(z|x), images from N(0, I) and their FID; a CNN that tells classes; MLPs that tell them from the VAE's latents and from
the codes of a VQ-VAE [2]; a Gaussian mixture fitted to the latents [3], whose samples are decoded.
--variant beta0.2: a KL weight of 0.2 in place of 1; only what depends on the VAE is trained beside.

[1] Kingma & Welling 2014, arXiv:1312.6114    [3] Ghosh et al. 2020 (density of latents), arXiv:1903.12436
[2] van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937
"""
import dataclasses
import math
import warnings

import torch
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus
from sklearn.model_selection import train_test_split
from torch import nn
from torchvision.transforms import v2

import vae
from studies import figures, losses, metrics, report, vq
from studies.report import Section, Table, percent
from studies.training import StudyModule, decoded_noise, mapped

TITLE = "Representations of photos: VAE, VQ-VAE, classifiers, mixture"
LEAD = "{train:,} photos of {side} px to train on, {held_out:,} held out"
EXAMPLE = "python -m studies representations PHOTOS --out representations --seeds 3 --variant beta0.2"
CHANNELS, LABELLED = 3, True


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour photos of 64 x 64 px in [0, 1], in a folder a class."""
    side: int = 64              # a multiple of 16
    # convolutional networks: AdamW, learning rate rising in a straight line, then falling as a half cosine
    steps: int = 3000           # optimizer steps, in whole epochs within the bounds below
    vae_steps: int = 6000       # of the VAE, in smaller batches
    fewest_epochs: int = 20
    most_epochs: int = 150
    batch_size: int = 16
    vae_batch_size: int = 8
    lr: float = 1e-3
    warm_up: float = 0.1        # share of the steps in which the learning rate and the VAE's KL weight rise
    shift: int = 4              # px, at most, by which a photo is moved in training; it is also mirrored
    seed: int = 0
    # VAE: 3-32-64-128-256, kernel 4, stride 2, batch norm; binary cross-entropy + beta KL
    widths: tuple = (32, 64, 128, 256)
    latent: int = 128
    beta: float = 1.0
    averaged: tuple = (1, 5, 10)  # samples of q(z|x) whose decoded images are averaged
    # VQ-VAE: 3-32-64, stride 2, two residual blocks; squared error / pixel variance + commitment_cost * commitment
    vq_widths: tuple = (32, 64)
    num_embeddings: int = 256
    embedding_dim: int = 64
    commitment_cost: float = 0.25
    decay: float = 0.95         # [2] has 0.99; a thousand photos give few batches an epoch
    dead_below: float = 0.05
    # classifiers: two 3 x 3 convolutions for each of `widths`; MLPs with one hidden layer
    weight_decay: float = 0.05
    dropout: float = 0.5        # of the MLPs
    hidden: int = 256
    mlp_epochs: int = 40
    mlp_batch_size: int = 128
    most_train: int = 20_000
    most_test: int = 2000
    components: tuple = (1, 2, 4, 8)  # of the mixture; the likeliest on a fifth of the training latents
    ridge: float = 1e-3         # added to each variance of the mixture
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


VARIANTS = {"beta0.2": {"beta": 0.2}}
QUICK = {"most_train": 1000, "most_test": 400, "steps": 140, "vae_steps": 480, "fewest_epochs": 4, "mlp_epochs": 20,
         "feature_steps": 75}
SHARED = ("cnn", "vqvae", "mlp_codes")  # what does not depend on the VAE
SOURCES = {"N(0, I)": "z ~ N(0, I)", "mixture": "z ~ mixture", "latents": "z of training photos",
           "training images": "training photos"}
LARGEST = 2.0  # smooth bound of log-variances, whose exp makes the KL of the first steps leap to thousands
PUBLISHED = {"accuracy": "100 %, one class", "fid": 249.12}  # Inception features, 1,000 images from N(0, I)


class PhotoModule(StudyModule):
    """What the networks share: photos moved and mirrored in training, and the optimizer with its schedule."""

    def __init__(self, settings):
        super().__init__()
        self.save_hyperparameters(dataclasses.asdict(settings))
        self.augment = v2.Compose([v2.RandomCrop(settings.side, settings.shift, padding_mode="reflect"),
                                   v2.RandomHorizontalFlip()])
        self.weight_decay, self.steps = 0.0, 1

    def training_step(self, batch, index):
        x, y = batch
        if x.dim() == 4:  # photos, not features
            x = torch.stack([self.augment(photo) for photo in x]).contiguous(memory_format=torch.channels_last)
        return super().training_step((x, y), index)

    def warmth(self, step):
        """0 to 1: how far the warm-up is at an optimizer step."""
        return min(1.0, (step + 1) / (self.hparams.warm_up * self.steps))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr, weight_decay=self.weight_decay, fused=True)
        self.steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
            self.warmth(step), (1 + math.cos(math.pi * min(1, step / self.steps))) / 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def convolution(width, following, kernel, stride):
    """The layers of a convolution with batch norm and SiLU."""
    return [nn.Conv2d(width, following, kernel, stride, 1, bias=False), nn.BatchNorm2d(following), nn.SiLU()]


class PhotoVAE(losses.GaussianVAE, PhotoModule):
    """Four strided convolutions, a Gaussian latent, and back."""

    def __init__(self, settings):
        super().__init__(settings)
        widths, corner = (3, *settings.widths), settings.side // 2 ** len(settings.widths)
        flat, layers = widths[-1] * corner ** 2, []
        for width, following in zip(widths, widths[1:]):
            layers += convolution(width, following, 4, 2)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 2 * settings.latent))
        layers = [nn.Linear(settings.latent, flat), nn.Unflatten(1, (widths[-1], corner, corner))]
        for width, following in zip(widths[:0:-1], widths[-2::-1]):
            layers += [nn.BatchNorm2d(width), nn.SiLU(), nn.ConvTranspose2d(width, following, 4, 2, 1)]
        self.decoder = nn.Sequential(*layers)

    def posterior(self, x):
        """Photos (B, 3, S, S) -> mean and log-variance of q(z|x), each (B, latent)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, LARGEST - F.softplus(LARGEST - log_variance)

    def moments(self, x):
        """Photos (B, 3, S, S) -> means, then log-variances, in one tensor (B, 2 latent)."""
        return torch.cat(self.posterior(x), dim=1)

    def kl_weight(self):
        """beta, to which it rises in training."""
        return self.hparams.beta * (self.warmth(self.global_step) if self.training else 1)


class VQVAE(PhotoModule):
    """Photos -> S/4 x S/4 codes -> photos [2]; the squared error is divided by the pixels' `variance`."""

    def __init__(self, settings, variance):
        super().__init__(settings)
        (low, high), wide, self.variance = settings.vq_widths, settings.embedding_dim, variance
        self.encoder = nn.Sequential(
            *convolution(3, low, 4, 2), *convolution(low, high, 4, 2)[:2], vq.Residual(high), vq.Residual(high),
            nn.ReLU(), nn.Conv2d(high, wide, 1))
        self.quantizer = vq.VectorQuantizer(settings.num_embeddings, wide, settings.decay, settings.dead_below)
        self.decoder = nn.Sequential(
            nn.Conv2d(wide, high, 3, 1, 1), vq.Residual(high), vq.Residual(high), nn.ReLU(),
            nn.ConvTranspose2d(high, low, 4, 2, 1, bias=False), nn.BatchNorm2d(low), nn.ReLU(),
            nn.ConvTranspose2d(low, 3, 4, 2, 1))

    def encode(self, x):
        """Photos (B, 3, S, S) -> index of the nearest code (B, S/4, S/4)."""
        return self.quantizer.nearest(self.encoder(x))

    def reconstruct(self, x):
        """Photos (B, 3, S, S) -> images in [0, 1]."""
        return self.decoder(self.quantizer.look_up(self.encode(x))).sigmoid()

    def features(self, x):
        """Photos (B, 3, S, S) -> square roots of each code's share in each quarter of the map, and the code vectors
        averaged over 4 x 4 squares of it, (B, 4 K + 16 D)."""
        index = self.encode(x)
        shares = F.adaptive_avg_pool2d(F.one_hot(index, self.hparams.num_embeddings).movedim(3, 1).float(), 2)
        pooled = F.adaptive_avg_pool2d(self.quantizer.look_up(index), 4)
        return torch.cat([shares.sqrt().flatten(1), pooled.flatten(1)], dim=1)

    def losses(self, x, y):
        quantized, commitment, index = self.quantizer(self.encoder(x))
        mse = losses.squared_error(self.decoder(quantized).float().sigmoid(), x).mean()
        perplexity = vq.perplexity(index.flatten().bincount())
        return {"loss": mse / self.variance + self.hparams.commitment_cost * commitment, "mse": mse,
                "commitment": commitment, "perplexity": torch.tensor(perplexity, device=self.device)}


class Classifier(PhotoModule):
    """Layers to logits (B, classes), from photos or from features."""

    def __init__(self, settings, *layers):
        super().__init__(settings)
        self.layers, self.weight_decay = nn.Sequential(*layers), settings.weight_decay

    def forward(self, x):
        return self.layers(x)

    def losses(self, x, y):
        logits = self(x)
        return {"loss": F.cross_entropy(logits, y), "error_rate": (logits.argmax(1) != y).float().mean()}

    def accuracies(self, images):
        """{"accuracy" on data.Images of photos or features, "train_accuracy" of the last epoch}."""
        found = mapped(self.forward, images.pixels).argmax(1)
        return {"accuracy": float((found == images.labels).float().mean()),
                "train_accuracy": 1 - self.history[-1]["train_error_rate"]}


def photo_classifier(settings, classes):
    """A CNN: two 3 x 3 convolutions for each width, the mean over the places, a linear layer."""
    layers = []
    for width, following in zip((3, *settings.widths), settings.widths):
        layers += [*convolution(width, following, 3, 2), *convolution(following, following, 3, 1)]
    return Classifier(settings, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(settings.widths[-1], classes))


def feature_classifier(settings, width, classes):
    """An MLP with one hidden layer, of standardised features."""
    return Classifier(settings, nn.BatchNorm1d(width, affine=False), nn.Dropout(settings.dropout),
                      nn.Linear(width, settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout),
                      nn.Linear(settings.hidden, classes))


def budget(settings, n, steps, batch_size):
    """{"epochs", "batch_size"} that give about so many steps of n photos, within the settings' bounds."""
    epochs = math.ceil(steps / math.ceil(n / batch_size))
    return {"epochs": min(max(epochs, settings.fewest_epochs), settings.most_epochs), "batch_size": batch_size}


def features_of(function, images):
    """data.Images whose "pixels" are features (N, D) of images."""
    return dataclasses.replace(images, pixels=mapped(function, images.pixels))


def fit_mixture(latents, settings, seed):
    """vae.GaussianMixture of latents (N, D), with the number of components that is likeliest on a fifth set aside."""
    latents = latents.double().numpy()
    rest, aside = train_test_split(latents, test_size=0.2, random_state=seed)

    def fitted(components, points):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one that fits badly shows in its likelihood
            return vae.GaussianMixture(settings.ridge, tol=1e-3, max_iter=200).fit(
                points, kmeans_plusplus(points, components, random_state=seed)[0])

    likelihood = {k: fitted(k, rest).score(aside) for k in settings.components if k <= len(rest)}
    return fitted(max(likelihood, key=likelihood.get), latents)


def train(study):
    """{"features": (function, facts), (seed, name of SHARED): module, (variant, seed, "vae" or "mlp_latents"): module,
    (variant, seed, "mixture"): vae.GaussianMixture}."""
    settings, photos, test, classes = study.settings, study.train, study.test, len(study.train.classes)
    models = {"features": metrics.train_feature_extractor(study)}
    variance = float(photos.at_most(2000, 0).floats().var())
    short = budget(settings, len(photos), settings.steps, settings.batch_size)
    long = budget(settings, len(photos), settings.vae_steps, settings.vae_batch_size)

    def fit(name, seed, options, make, *words, images=(photos, test)):
        torch.manual_seed(seed)
        return study.run.fit(f"{name}_seed{seed}", make(*words), *images, seed=seed, **options)

    def fit_mlp(name, seed, function):
        mirrored = dataclasses.replace(photos, pixels=torch.cat([photos.pixels, photos.pixels.flip(3)]),
                                       labels=photos.labels.repeat(2))
        images = features_of(function, mirrored), features_of(function, test)
        return fit(name, seed, {"epochs": settings.mlp_epochs, "batch_size": settings.mlp_batch_size},
                   feature_classifier, settings, images[1].pixels.shape[1], classes, images=images)

    for seed in study.seeds:
        models[seed, "cnn"] = fit("cnn", seed, short, photo_classifier, settings, classes)
        models[seed, "vqvae"] = fit("vqvae", seed, short, VQVAE, settings, variance)
        models[seed, "mlp_codes"] = fit_mlp("mlp_codes", seed, models[seed, "vqvae"].features)
        for variant, changed in study.variants.items():
            model = models[variant, seed, "vae"] = fit(f"vae_{variant}", seed, long, PhotoVAE, changed)
            models[variant, seed, "mlp_latents"] = fit_mlp(f"mlp_latents_{variant}", seed, model.encode)
            models[variant, seed, "mixture"] = fit_mixture(mapped(model.encode, photos.pixels), changed, seed)
    return models


def averaged_reconstructions(model, pixels, most, seed):
    """Yields (k, images (N, 3, S, S)) for k = 1 to `most`: the mean of k decoded samples of q(z|x) of each photo."""
    mean, log_variance = mapped(model.moments, pixels).chunk(2, dim=1)
    noise, total = torch.Generator().manual_seed(seed), 0
    for k in range(1, most + 1):
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=noise)
        total = total + mapped(model.decode, z)
        yield k, total / k


def generated(model, mixture, n, seed):
    """{source: images (n, 3, S, S)} decoded from z ~ N(0, I) and from samples of the mixture of latents."""
    return {"N(0, I)": decoded_noise(model.decode, model.hparams.latent, n, seed),
            "mixture": mapped(model.decode, torch.from_numpy(mixture.sample(n, seed)[0]).float())}


def quality(images, real, name):
    """Mean squared error and sharpness of reconstructions of photos `real`, under keys that end in `name`."""
    return {f"mse_{name}": float(losses.squared_error(images, real).mean()),
            f"sharpness_{name}": metrics.sharpness(images)}


def measure_vae(models, study, variant, seed):
    """Numbers of a VAE and of what depends on it."""
    model, mlp, mixture = (models[variant, seed, name] for name in ("vae", "mlp_latents", "mixture"))
    photos, test, real = study.train, study.test, study.test.floats()
    latents = mapped(model.encode, photos.at_most(len(test), seed).pixels)
    images = {**generated(model, mixture, len(latents), seed), "latents": mapped(model.decode, latents)}
    found = {
        **mlp.accuracies(features_of(model.encode, test)), "seconds": model.seconds,
        **{name: model.history[-1][f"test_{name}"] for name in ("loss", "reconstruction", "kl")},
        **quality(mapped(model.reconstruct, test.pixels), real, "mean"),
        "components": len(mixture.weights_)}
    for k, averages in averaged_reconstructions(model, test.pixels, max(study.settings.averaged), seed):
        found.update(quality(averages, real, k))
    fids = metrics.fids(models["features"][0], photos, test.at_most(1000, seed), images, seed)
    return {**found, **{f"fid_{name}": value for name, value in fids.items()}}


def measure_shared(models, study, seed):
    """Numbers of the CNN, of the VQ-VAE and of the MLP on its codes."""
    (cnn, model, mlp), test = (models[seed, name] for name in SHARED), study.test
    counts = mapped(model.encode, test.pixels).long().flatten().bincount()
    return {"cnn": {**cnn.accuracies(test), "seconds": cnn.seconds},
            "mlp_codes": mlp.accuracies(features_of(model.features, test)),
            "vqvae": {**quality(mapped(model.reconstruct, test.pixels), test.floats(), "codes"),
                      "perplexity": vq.perplexity(counts), "active_codes": int((counts > 0).sum()),
                      "seconds": model.seconds}}


def measure(study, models):
    """{"numbers": {variant: {measure: {"mean", "sd", "values"}}}, "shared": {model: the same},
    "accuracies": {name: {"held_out", its 95 % "interval", "sd" over seeds, "training"}}, ...} for results.json."""
    about, photos, test, real = models["features"][1], study.train, study.test, study.test.floats()
    shared = metrics.summarise([measure_shared(models, study, seed) for seed in study.seeds])
    numbers = {variant: metrics.summarise([measure_vae(models, study, variant, seed) for seed in study.seeds])
               for variant in study.variants}

    def line(held_out, sd=None, training=None):
        return {"held_out": held_out, "interval": metrics.proportion_interval(round(held_out * len(test)), len(test)),
                "sd": sd, "training": training}

    return {
        "numbers": numbers, "shared": shared, "features": about, "published": PUBLISHED,
        "accuracies": {"most frequent class": line(metrics.majority_baseline(photos.labels, test.labels)), **{
            name: line(one["accuracy"]["mean"], one["accuracy"]["sd"], one["train_accuracy"]["mean"])
            for name, one in (("photo, CNN", shared["cnn"]), ("VQ-VAE codes, MLP", shared["mlp_codes"]),
                              *((f"VAE latent ({variant}), MLP", one) for variant, one in numbers.items()))}},
        "real": {**quality(photos.at_most(2000, 0).floats().mean(0).expand_as(real), real, "mean_photo"),
                 "sharpness": metrics.sharpness(real)},
        "history": {" ".join(map(str, key)): model.history for key, model in models.items()
                    if isinstance(model, StudyModule)}}


def sections(study, models, results, picture):
    """The report's sections; the figures are of the first seed's models."""
    numbers, codes, real = results["numbers"], results["shared"]["vqvae"], results["real"]
    caption = f"{results['data']['held_out']:,} held-out photos; {report.seeds_text(results)}."
    decoded = {**{k: f"{k} decoded samples averaged" for k in study.settings.averaged},
               "mean": "decoded mean of q(z|x)"}
    titles = {"loss": "loss, nats a photo", "reconstruction": "  its reconstruction term", "kl": "  KL divergence",
              **{f"{key}_{name}": f"{title}, {what}" for key, title, whats in (
                  ("mse", "mean squared error", decoded), ("sharpness", "sharpness", decoded),
                  ("fid", "FID", SOURCES)) for name, what in whats.items()},
              "components": "components of the mixture", "seconds": "training, seconds"}
    photos = {key: real["sharpness"] for key in titles if key.startswith("sharpness")}
    return [
        Section("Classes", [f"Published accuracies: {PUBLISHED['accuracy']}."], [Table(
            f"Accuracy on {caption}", ["told from", "held-out (95 % interval)", "sd over seeds", "training"],
            [[name, percent(one["held_out"], one["interval"]),
              *("–" if one[key] is None else percent(one[key]) for key in ("sd", "training"))]
             for name, one in results["accuracies"].items()])]),
        Section("VAE", [
            report.features_text(results["features"]),
            f"Published: FID {PUBLISHED['fid']} of 1,000 images from N(0, I), Inception features, other photos. The "
            f"mean training photo has a mean squared error of {report.number(real['mse_mean_photo'])}."],
            [report.compared(caption, {**numbers, "real photos": photos}, titles)]),
        *(Section(f"Figures: {variant}", (), (), pictures(variant, study, models, results, picture))
          for variant in study.variants),
        Section("VQ-VAE and classifiers", [], [report.compared(
            f"VQ-VAE, {study.settings.num_embeddings} codes; {caption}", {"VQ-VAE": codes}, {
                "mse_codes": "mean squared error", "sharpness_codes": "sharpness", "active_codes": "codes that occur",
                "perplexity": "perplexity of the codes", "seconds": "training, seconds"})],
            shared_pictures(study, models, picture))]


def shared_pictures(study, models, picture):
    """The pictures of what does not depend on the VAE."""
    seed, settings, few = study.args.seed, study.settings, study.test.at_most(10, study.args.seed)
    model, classifiers = models[seed, "vqvae"], {
        "photo, CNN": models[seed, "cnn"], "VQ-VAE codes, MLP": models[seed, "mlp_codes"],
        "VAE latent, MLP": models["described", seed, "mlp_latents"]}
    return [
        picture("classifiers", figures.curves_figure({
            title: classifier.curves("error_rate") for title, classifier in classifiers.items()}, "error rate"),
            "Error rates against epochs. In training photos are moved and mirrored, and the MLPs have dropout."),
        picture("vq_loss", figures.curves_figure({name: model.curves(name) for name in ("loss", "mse", "perplexity")}),
                f"VQ-VAE: squared error / pixel variance + {settings.commitment_cost:g} x commitment; mean squared "
                f"error; perplexity of the codes of a batch, {settings.num_embeddings} at most."),
        picture("vq_reconstructions", figures.rows_figure(
            {"photo": few.floats(), "VQ-VAE": mapped(model.reconstruct, few.pixels)}),
            f"Held-out photos and what the VQ-VAE makes of their {settings.side // 4} x {settings.side // 4} codes.")]


def pictures(variant, study, models, results, picture):
    """The pictures of a variant's VAE."""
    seed, settings, numbers = study.args.seed, study.variants[variant], results["numbers"][variant]
    model, mixture = models[variant, seed, "vae"], models[variant, seed, "mixture"]
    hundred = study.test.subset(torch.randperm(len(study.test), generator=torch.Generator().manual_seed(seed))[:100])
    counts = range(1, max(settings.averaged) + 1)
    averages = {f"mean of {k} samples" if k > 1 else "1 sample": images for k, images in averaged_reconstructions(
        model, hundred.pixels, counts[-1], seed) if k in settings.averaged}
    return [
        picture(f"loss_{variant}", figures.curves_figure({
            title: model.curves(name) for title, name in (
                (f"reconstruction + {settings.beta:g} KL", "loss"), ("reconstruction", "reconstruction"),
                ("KL", "kl"))}, "nats a photo"),
            f"{variant}: in training the KL weight rises to {settings.beta:g} in {settings.warm_up:.0%} of the steps."),
        picture(f"reconstructions_{variant}", figures.grid_figure(
            {"held-out photos": hundred.floats(), **averages}, 10, 2),
            f"{variant}: held-out photos drawn at random; the mean of 1, 5 and 10 decoded samples of q(z|x)."),
        picture(f"averaging_{variant}", figures.curves_figure({title: {
            "mean of k samples": (counts, [numbers[f"{key}_{k}"]["mean"] for k in counts]),
            "decoded mean of q(z|x)": (counts, [numbers[f"{key}_mean"]["mean"]] * len(counts))}
            for title, key in (("mean squared error", "mse"), ("sharpness", "sharpness"))}, "", "samples k"),
            f"{variant}: all held-out photos, whose own sharpness (variance of the Laplacian) is "
            f"{report.number(results['real']['sharpness'])}."),
        picture(f"samples_{variant}", figures.grid_figure(
            {SOURCES[source]: images for source, images in generated(model, mixture, 100, seed).items()}, 10),
            f"{variant}: images decoded from N(0, I) and from the mixture of {len(mixture.weights_)} components.")]
