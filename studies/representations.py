"""Study 3: what photos are turned into, and what that is good for: a VAE, a VQ-VAE, classifiers, a mixture of latents.

A convolutional VAE of colour photos [1], with reconstructions that average 1, 5 and 10 decoded samples of q(z|x). The
class of a photo told from the photo by a convolutional network, from the VAE's latent by an MLP, from the codes of a
VQ-VAE [2] by an MLP: each accuracy on held-out photos, with its 95 % interval, beside that of always naming the most
frequent class. New photos from z ~ N(0, I) and from a Gaussian mixture fitted to the latents [3], both with their FID.

[1] Kingma & Welling 2014, arXiv:1312.6114             [3] Ghosh et al. 2020 (density of latents), arXiv:1903.12436
[2] van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937
"""
import dataclasses
import math
import sys
import time
import warnings
from typing import Tuple

import torch
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus

import vae
from studies import data, engine, figures, losses, metrics, photo_models, report, vq
from studies.figures import Picture
from studies.report import Section, Table

EXAMPLE = "python -m studies representations PHOTOS --out representations --seeds 3"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour photos of 64 x 64 px in [0, 1], in a folder a class."""
    side: int = 64              # a multiple of 16
    test_share: float = 0.2     # of each class, held out where the data has no test files
    most_train: int = 20_000
    most_test: int = 4_000
    # all networks: AdamW, rate annealed to 0 by a half cosine, photos shifted and mirrored at random
    batch: int = 64
    epochs: int = 32
    shift: int = 4              # px, at most
    # VAE: 3-32-64-128-256, stride 2, batch norm; binary cross-entropy + beta KL
    widths: Tuple[int, ...] = (32, 64, 128, 256)
    latent: int = 128
    beta: float = 0.2           # beat 1 in error, FID and accuracy: 12 epochs of animals, a fifth of training set aside
    vae_rate: float = 2e-3
    averaged: Tuple[int, ...] = (1, 5, 10)  # samples of q(z|x) whose decoded images are averaged
    # VQ-VAE: 3-32-64, stride 2, two residual blocks; mean squared error / pixel variance + commitment * mean squared
    # difference of encoder outputs from their codes
    vq_widths: Tuple[int, ...] = (32, 64)
    codes: int = 256
    code_width: int = 64
    commitment: float = 0.25
    decay: float = 0.95         # [2] has 0.99; a set of a thousand photos has few batches an epoch
    dead_below: float = 0.05    # of an even share of the batch's places
    vq_rate: float = 2e-3
    # classifier of photos: two 3 x 3 convolutions for each of `widths`; label smoothing
    cnn_rate: float = 2e-3
    smoothing: float = 0.1
    decoupled_decay: float = 0.05
    # classifiers of latents and of codes: an MLP with one hidden layer, noise on its standardised inputs
    mlp_width: int = 256
    mlp_epochs: int = 40
    mlp_rate: float = 1e-3
    mlp_noise: float = 1.0
    # mixture: full covariances; the number of components with the best likelihood on a fifth of the training latents
    components: Tuple[int, ...] = (1, 2, 4, 8)
    ridge: float = 1e-3         # added to each variance
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


DIVERSITY = 500             # images, at most, whose distances from each other are measured
MEASUREMENT = ("test_share", "most_train", "most_test", "averaged", "components", "ridge", "feature_steps")
QUICK = {"most_train": 1000, "most_test": 400, "batch": 32, "epochs": 6, "mlp_epochs": 20, "feature_steps": 150}


# ------------------------------------------------------------------------------------------------------------ training

def _views(batch, settings):
    """The batch's photos, in training shifted and mirrored at random."""
    if batch.epoch == 0:
        return batch.x
    shifts = [batch.integers(2 * settings.shift + 1) - settings.shift for _ in range(2)]
    views = photo_models.shifted_and_mirrored(batch.x, *shifts, batch.integers(2))
    return views.contiguous(memory_format=torch.channels_last)


def _vae_step(settings):
    def step(modules, batch):
        x = _views(batch, settings)
        logits, mean, log_variance = modules["vae"](x, batch.normal(settings.latent))
        loss, reconstruction, kl = losses.negative_elbo(logits, x, mean, log_variance, settings.beta)
        return {"loss": loss.mean(), "reconstruction": reconstruction.mean(), "kl": kl.mean()}
    return step


def _vq_step(settings, variance):
    def step(modules, batch):
        x = _views(batch, settings)
        output, commitment = modules["vqvae"](x, batch.integers(2 ** 31 - 1))
        error = losses.squared_error(output, x).mean()
        return {"loss": error / variance + settings.commitment * commitment, "mse": error, "commitment": commitment}
    return step


def _classification(logits, y, smoothing):
    return {"loss": F.cross_entropy(logits, y, label_smoothing=smoothing),
            "error": (logits.argmax(1) != y).float().mean()}


def _cnn_step(settings):
    def step(modules, batch):
        return _classification(modules["cnn"](_views(batch, settings)), batch.y,
                               settings.smoothing if batch.epoch else 0.0)
    return step


def _mlp_step(settings, train_features, test_features):
    """A step that takes the features of the batch's photos: of training photos (2, N, D), as they are and mirrored, of
    held-out ones (M, D)."""
    def step(modules, batch):
        if batch.epoch:
            side = batch.integers(2).cpu()
            features, noise = train_features[side, batch.index], settings.mlp_noise * batch.normal(
                train_features.shape[-1])
        else:
            features = test_features[batch.index]
            noise = torch.zeros_like(features)
        logits = modules["mlp"](features.to(batch.device), noise.to(batch.device))
        return _classification(logits, batch.y, settings.smoothing if batch.epoch else 0.0)
    return step


def annealed(step, rate, epochs):
    """The `update` of engine.fit that minimises step's "loss" with a rate that falls as a half cosine."""
    def update(modules, optimizers, batch, backward):
        found = step(modules, batch)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * (batch.epoch - 1) / epochs)) / 2
            optimizer.zero_grad(set_to_none=True)
        backward(found["loss"])
        for optimizer in optimizers.values():
            optimizer.step()
        return found
    return update


def _fit(bench, kind, step, model, rate, settings, train, test, seed, name=None, epochs=None, **options):
    """engine.Fitted of a model for one seed; no epoch is chosen by its result."""
    epochs, name = epochs or settings.epochs, name or kind
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=settings.decoupled_decay
                                  if kind in ("cnn", "mlp") else 0.0)
    about = {key: list(value) if isinstance(value, tuple) else value
             for key, value in dataclasses.asdict(settings).items() if key not in MEASUREMENT}
    return engine.fit(bench, f"{name}_seed{seed}", {kind: model}, {kind: optimizer}, step, train, test, epochs=epochs,
                      batch=settings.batch, seed=seed, about={**about, "model": name},
                      update=annealed(step, rate, epochs), channels_last=kind != "mlp", **options)


def with_mirrored(function, pixels):
    """Features (2, N, D) of images (N, C, H, W): as they are, and mirrored."""
    return torch.stack([engine.mapped(function, pixels), engine.mapped(function, pixels.flip(3))])


def mean_and_variance(pixels):
    """(mean photo (C, H, W), variance over all values) of pixels uint8 (N, C, H, W), both as of [0, 1]."""
    total, squares, n = 0.0, 0.0, pixels.numel()
    for part in pixels.split(256):  # the whole as floats would be gigabytes; whole numbers below 2^53 add up exactly
        part = part.double()
        total, squares = total + part.sum(0), squares + part.square().sum()
    variance = (squares - total.sum() ** 2 / n) / (n - 1) / 255 ** 2
    return (total / len(pixels) / 255).float(), float(variance)


def train_all(bench, settings, train, test, seed):
    """{"vae", "cnn", "vqvae", "mlp_latents", "mlp_codes": engine.Fitted} of one seed."""
    classes = len(train.classes)
    _, variance = mean_and_variance(train.pixels)
    with engine.seeded(seed, 31):
        models = {"vae": photo_models.PhotoVAE(settings), "cnn": photo_models.photo_classifier(settings, classes),
                  "vqvae": vq.VQVAE(3, settings.vq_widths, settings.codes, settings.code_width, settings.decay,
                                    settings.dead_below)}

    def usage(modules, epoch):
        counts = code_counts(modules["vqvae"], test, settings)
        return {"perplexity": vq.perplexity(counts), "active": int((counts > 0).sum()),
                "revived": int(modules["vqvae"].quantiser.revived)}

    fits = {"vae": _fit(bench, "vae", _vae_step(settings), models["vae"], settings.vae_rate, settings, train, test,
                        seed),
            "cnn": _fit(bench, "cnn", _cnn_step(settings), models["cnn"], settings.cnn_rate, settings, train, test,
                        seed),
            "vqvae": _fit(bench, "vqvae", _vq_step(settings, variance), models["vqvae"], settings.vq_rate, settings,
                          train, test, seed, each_epoch=usage)}

    for name, function in (("mlp_latents", models["vae"].encode), ("mlp_codes", models["vqvae"].features)):
        features = with_mirrored(function, train.pixels), engine.mapped(function, test.pixels)
        with engine.seeded(seed, 32):
            mlp = photo_models.FeatureClassifier(features[1].shape[1], settings, classes)
        fits[name] = _fit(bench, "mlp", _mlp_step(settings, *features), mlp, settings.mlp_rate, settings, train, test,
                          seed, name=name, epochs=settings.mlp_epochs)
    return fits


# --------------------------------------------------------------------------------------------------------- measurement

def averaged_reconstructions(model, pixels, counts, seed):
    """Yields, for each k of `counts`, rising, (k, images (N, 3, S, S) in [0, 1]): the mean of k decoded draws of q(z|x)
    of each of the photos (N, 3, S, S). The draws of a smaller k are among those of a larger."""
    mean, log_variance = engine.mapped(model.encoder, pixels).chunk(2, dim=1)
    noise, total, drawn = engine.generator(seed, 41), 0, 0
    for count in counts:
        while drawn < count:
            z = losses.reparameterize(mean, log_variance, torch.randn(mean.shape, generator=noise))
            total, drawn = total + engine.mapped(model.decode, z), drawn + 1
        yield count, total / count


def code_counts(model, images, settings):
    """How often each code of a VQVAE occurs in Images, (K,)."""
    index = engine.mapped(model.encode, images.pixels, 500).long()
    return index.flatten().bincount(minlength=settings.codes)


def fit_mixture(latents, settings, seed):
    """(vae.GaussianMixture of latents (N, D), {components: mean log-likelihood, in nats, of a fifth of them that was
    set aside}): with the number of components that is best there, fitted to all."""
    latents = latents.double().numpy()
    order = torch.randperm(len(latents), generator=engine.generator(seed, 42)).numpy()
    aside, rest = latents[order[:len(order) // 5]], latents[order[len(order) // 5:]]

    def fitted(components, points):
        mixture = vae.GaussianMixture(settings.ridge, tol=1e-3, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one that fits badly is found by its likelihood
            return mixture.fit(points, kmeans_plusplus(points, components, random_state=seed)[0])

    likelihood = {k: fitted(k, rest).score(aside) for k in settings.components if k <= len(rest)}
    return fitted(max(likelihood, key=likelihood.get), latents), likelihood


def drawn_latents(mixture, n, seed):
    """{name: latents (n, D)} of new photos: standard normal noise, and draws of the mixture."""
    noise = torch.randn(n, mixture.means_.shape[1], generator=engine.generator(seed, 43))
    return {"N(0, I)": noise, "mixture": torch.from_numpy(mixture.sample(n, seed)[0]).float()}


def measure(fits, settings, train, test, judges, seed):
    """(numbers of one seed, its mixture of latents). `judges` {name: (function to features, most images)} are those of
    the FID."""
    model, vq_model, last = fits["vae"].modules["vae"], fits["vqvae"].modules["vqvae"], fits["vae"].history[-1]
    real = test.pixels.float() / 255

    def mse(images):
        return float(losses.squared_error(images, real).mean())

    latents = engine.mapped(model.encode, train.pixels)
    mixture, likelihood = fit_mixture(latents, settings, seed)
    n = min(len(train), len(test))
    some = torch.randperm(len(latents), generator=engine.generator(seed, 45))[:n]
    decoded = {name: engine.mapped(model.decode, z) for name, z in {
        **drawn_latents(mixture, n, seed), "latents of photos": latents[some]}.items()}
    usage = fits["vqvae"].kept[-1]
    return {
        "accuracy": {name: 1 - fits[name].history[-1]["test"]["error"] for name in CLASSIFIERS},
        "train_accuracy": {name: 1 - fits[name].history[-1]["train"]["error"] for name in CLASSIFIERS},
        "vae": {"mean": mse(engine.mapped(model.reconstruct, test.pixels)),
                **{str(k): mse(images)
                   for k, images in averaged_reconstructions(model, test.pixels, settings.averaged, seed)},
                **{key: last["test"][key] for key in ("loss", "reconstruction", "kl")}},
        "mixture": {"components": len(mixture.weights_),
                    "log_likelihood": {str(k): value for k, value in likelihood.items()}},
        "fid": {judge: metrics.fid_with_floor(features, train, data.at_most(test, most, seed), decoded, seed)
                for judge, (features, most) in judges.items()},
        "sharpness": {name: metrics.sharpness(images) for name, images in decoded.items()},
        "diversity": {name: metrics.mean_pairwise_l2(images[:DIVERSITY]) for name, images in decoded.items()},
        "vqvae": {"mse": mse(engine.mapped(vq_model.reconstruct, test.pixels, 500)), **usage},
        "seconds": {name: fit.seconds for name, fit in fits.items()}
    }, mixture


# ------------------------------------------------------------------------------------------------------------ pictures

def draw(fits, settings, test, mixture, accuracies, seed, signature):
    """{name: Picture} of the first seed's models and of its mixture of latents; `accuracies` {name: (share, interval)}
    is of all seeds."""
    model, vq_model = fits["vae"].modules["vae"], fits["vqvae"].modules["vqvae"]
    some = torch.randperm(len(test), generator=engine.generator(seed, 44))[:10]
    few = test.pixels[some]

    def both(name, loss, title):
        return {f"{label} {title}": fits[name].curve(part, loss)
                for label, part in (("training", "train"), ("held-out", "test"))}

    def picture(name, content, alt, caption):
        content = content if isinstance(content, bytes) else figures.png_bytes(content, signature)
        return name, Picture(name, content, alt, caption)

    averages = {f"mean of {k}" if k > 1 else "1 sample": images
                for k, images in averaged_reconstructions(model, few, settings.averaged, seed)}
    kept = fits["vqvae"].kept
    return dict([
        picture("accuracies", figures.intervals_figure(accuracies, "share of held-out photos told right"),
                "Bars of accuracy on held-out photos with 95 % intervals: " + "; ".join(
                    f"{name} {report.share(*found)}" for name, found in accuracies.items()) + ".",
                f"Accuracy on {len(test):,} held-out photos, with 95 % intervals (Wilson). The first bar names the "
                "most frequent training class always."),
        picture("vae_loss", figures.curves_figure(
            {"cross-entropy + beta KL": both("vae", "loss", "loss"), "KL": both("vae", "kl", "KL")}, "nats a photo"),
            f"Two panels against {len(fits['vae'].history)} epochs: loss of the VAE and its KL term, training and "
            "held-out.",
            f"VAE. Left: binary cross-entropy + {settings.beta} KL. Training photos are shifted and mirrored, held-out "
            "ones are not; the training curve is the mean over an epoch in which the weights were changing."),
        picture("reconstructions", figures.rows_figure({"photo": few.float() / 255, **averages}),
                "Rows of ten held-out photos and of their reconstructions from "
                f"{', '.join(map(str, settings.averaged))} samples of the latent, averaged.",
                "Held-out photos, drawn at random; below, the decoded images of samples of q(z|x), averaged."),
        picture("samples", figures.sheet_png(
            {f"z ~ {name}": engine.mapped(model.decode, z) for name, z in drawn_latents(mixture, 100, seed).items()},
            10, signature),
            "Two grids of 10 x 10 images decoded from N(0, I) and from the mixture of latents.",
            "Images of the VAE's decoder, none selected. Left: z ~ N(0, I). Right: z from the Gaussian mixture fitted "
            "to the latents of training photos."),
        picture("classifiers", figures.curves_figure(
            {title: both(name, "error", "error") for name, title in CLASSIFIERS.items()}, "error rate",
            common_scale=True),
            "Three panels, error rate on photos against epochs by each classifier, training and held-out.",
            "In training photos are shifted and mirrored; latents and code features are those of the photo or of its "
            "mirror image, with noise added. No epoch was chosen: the last one counts."),
        picture("vq_codes", figures.curves_figure(
            {"loss": both("vqvae", "loss", "loss"), "use of the codes": {
                "held-out perplexity": [one["perplexity"] for one in kept],
                "held-out active codes": [one["active"] for one in kept]}}, ""),
            f"Left, loss of the VQ-VAE against epochs; right, perplexity and active codes of {settings.codes}.",
            f"VQ-VAE. Left: mean squared error over the pixel variance + {settings.commitment} times the commitment, "
            "the mean squared difference of the encoder's outputs from their codes. Right, over all places of all "
            f"held-out photos: perplexity of the codes, and how many of {settings.codes} occur at all."),
        picture("vq_reconstructions", figures.rows_figure(
            {"photo": few.float() / 255, "VQ-VAE": engine.mapped(vq_model.reconstruct, few)}),
            "Two rows of ten held-out photos and of their reconstructions by the VQ-VAE.",
            f"The same held-out photos through {settings.side // 4} x {settings.side // 4} codes of the VQ-VAE.")])


# -------------------------------------------------------------------------------------------------------------- report

CLASSIFIERS = {"cnn": "photo, CNN", "mlp_latents": "VAE latent, MLP", "mlp_codes": "VQ-VAE codes, MLP"}
PUBLISHED = {"accuracy": "100 %, of one class", "fid": 249.12}  # Inception features, 1,000 images, N(0, I)


def accuracies(numbers, majority, held):
    """{name: (share, 95 % interval)} of the baseline and of the classifiers. The interval is that of one set of `held`
    photos at the mean accuracy of the seeds."""
    shares = {"most frequent class": majority,
              **{title: numbers["accuracy"][key]["mean"] for key, title in CLASSIFIERS.items()}}
    return {name: (value, metrics.wilson_interval(value * held, held)) for name, value in shares.items()}


def _accuracy_table(results):
    found, numbers, held = results["accuracies"], results["numbers"], results["data"]["held_out"]
    rows = []
    for name, (value, interval) in found.items():
        key = next((key for key, title in CLASSIFIERS.items() if title == name), None)
        spread = numbers["accuracy"][key]["sd"] if key else None
        rows.append([name, report.share(value), f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %",
                     "–" if spread is None else report.share(spread),
                     report.share(numbers["train_accuracy"][key]["mean"]) if key else "–",
                     PUBLISHED["accuracy"] if key else "–"])
    seeds = len(results["seeds"])
    return Table(f"Share of {held:,} photos told right; {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}.",
                 ["told from", "held-out", "95 % interval", "sd over seeds", "training", "published"], rows)


def _fid_table(results, judge):
    found, real, ours = results["numbers"], results["real"], judge != "Inception"
    values = found["fid"][judge]
    rows = [["z ~ " * (name != "latents of photos") + name, report.number(values[name]), "–",
             report.number(found["sharpness"][name]), report.number(found["diversity"][name])]
            for name in found["sharpness"]]
    rows[0][2] = f"({PUBLISHED['fid']})" if ours else str(PUBLISHED["fid"])
    rows += [["training photos (floor)", report.number(values["floor"]), "–", "–", "–"],
             ["held-out photos", "–", "–", report.number(real["sharpness"]), report.number(real["diversity"])]]
    n = _whole(values["n"])
    return Table(f"FID of {n} images against {n} held-out photos, features: {judge}.",
                 ["decoded from", "FID", "published, other features" if ours else "published, 1,000 other photos",
                  "sharpness", "diversity"], rows)


def _whole(value):
    """report.number of a count's {"mean", "sd"}."""
    return report.number({**value, "mean": int(value["mean"])} if value["mean"] == int(value["mean"]) else value)


def _fid_sentence(numbers, judge):
    noise, mixture = (numbers["fid"][judge][name]["mean"] for name in ("N(0, I)", "mixture"))
    return (f"With these features the FID of the mixture's samples is {report.number(abs(noise - mixture))} "
            f"{'below' if mixture < noise else 'above'} that of samples from N(0, I).")


def sections(results, pictures):
    """The report's sections from results.json and the pictures."""
    found, judge, about, settings = (results[key] for key in ("numbers", "features", "data", "settings"))
    held, mse, codes = about["held_out"], found["vae"], found["vqvae"]
    likelihood = ", ".join(f"{report.number(value['mean'])} with {k}" for k, value in
                           found["mixture"]["log_likelihood"].items())
    return [
        Section("Telling the class", [
            f"{len(about['classes'])} classes; {about['train']:,} photos trained on, {held:,} held out. The published "
            "accuracies of 100 % are of a set with a single class, which any answer gets right: what they can be "
            "compared with is the baseline. All trainings run a fixed number of epochs; the held-out photos chose "
            "nothing.",
            f"The latent is the mean of q(z|x), {settings['latent']} numbers. The codes enter as how often each of "
            f"{settings['codes']} occurs in each quarter of the photo (square roots), and as code vectors averaged "
            "over 4 x 4 squares of it. VAE and VQ-VAE have seen the training photos without their classes."],
            [_accuracy_table(results)], [pictures["accuracies"], pictures["classifiers"]]),
        Section("The VAE", [
            f"Held-out loss {report.number(mse['loss'])} nats a photo, of which {report.number(mse['reconstruction'])} "
            f"are cross-entropy and {report.number(mse['kl'])} KL before its weight of {settings['beta']}."],
            [Table(f"Mean squared error of {held:,} held-out photos, pixels in [0, 1]; lower is better.",
                   ["reconstruction", "mean squared error"],
                   [*[[f"{k} samples of the latent, images averaged" if k > 1 else "1 sample of the latent",
                       report.number(mse[str(k)])] for k in settings["averaged"]],
                    ["from the mean of the latent", report.number(mse["mean"])],
                    ["the mean training photo, for comparison", report.number(results["real"]["mean_photo_mse"])]])],
            [pictures["vae_loss"], pictures["reconstructions"]]),
        Section("New photos: N(0, I) and the mixture of latents", [
            f"The mixture has full covariances and {_whole(found['mixture']['components'])} components, the "
            "number with the highest likelihood on a fifth of the training latents (nats a latent: "
            f"{likelihood}). Latents of training photos, decoded, show what the decoder alone costs.",
            "FID by features learnt here: a classifier trained on the training photos to tell "
            f"{judge['what']}, {report.share(judge['accuracy'], judge['interval'])} right on the held-out ones (95 % "
            f"interval) and {report.share(judge['train_accuracy'])} on those it learnt from, during its last epoch. "
            f"They are not comparable with the published {PUBLISHED['fid']}, which is of Inception features on 1,000 "
            "images" + (", as in the second table here; other photos, though." if "Inception" in found["fid"]
                        else "; --inception WEIGHTS adds an FID of that kind."),
            _fid_sentence(found, "learnt here") + report.weak_features(
                judge, results["real"]["majority"], "this FID, and so that difference, decides little here"),
            f"That is no test of the mixture alone: the KL has a weight of {settings['beta']}, and below 1 it lets the "
            "latents of all photos together leave N(0, I), where the mixture follows them.",
            "The floor is the FID of as many training photos, which the classifier has seen. Sharpness is the variance "
            "of the Laplacian, diversity the mean L2 distance of two of "
            f"{results['real']['diversity_images']:,} images."],
            [_fid_table(results, name) for name in found["fid"]], [pictures["samples"]]),
        Section("The VQ-VAE", [
            f"Of {settings['codes']} codes {_whole(codes['active'])} occur on held-out photos, with a "
            f"perplexity of {report.number(codes['perplexity'])}; squared error {report.number(codes['mse'])}. Codes "
            f"were started {_whole(codes['revived'])} times from the batch's encoder outputs, the first "
            f"{settings['codes']} of them to begin with."],
            [], [pictures["vq_codes"], pictures["vq_reconstructions"]]),
        report.run_section(results)]


# -------------------------------------------------------------------------------------------------------- command line

add_arguments = metrics.add_inception_flag


def run(args):
    """The whole study; returns the exit code. Raises InputError."""
    began = time.monotonic()
    settings = Settings(**(QUICK if args.quick else {}))
    settings = dataclasses.replace(settings, epochs=args.epochs or settings.epochs,
                                   mlp_epochs=args.epochs or settings.mlp_epochs)
    train, test, how = data.for_study(args, settings, 3, labelled=True)
    if args.inception:
        metrics.inception_features(args.inception)  # what is wrong with it should be told before the training
    bench = engine.open_bench(args.out, args.device, args.devices, args.precision, args.resume)
    seeds = range(args.seed, args.seed + args.seeds)
    net, judge = metrics.train_feature_net(bench, train, test, settings.feature_steps, seed=args.seed)
    fits = {seed: train_all(bench, settings, train, test, seed) for seed in seeds}
    if not bench.leads:
        return 0

    print("measuring", file=sys.stderr)
    judges = {"learnt here": (lambda images: engine.mapped(net.features, images), len(test))}
    if args.inception:
        judges["Inception"] = metrics.inception_features(args.inception, bench.fabric.device), 1000
    numbers, mixtures = zip(*(measure(fits[seed], settings, train, test, judges, seed) for seed in seeds))
    real, diverse = test.pixels.float() / 255, min(DIVERSITY, len(train), len(test))
    mean_photo, _ = mean_and_variance(train.pixels)
    majority = metrics.majority_baseline(train.labels, test.labels)
    results = {
        **report.run_facts(args, bench, settings, train, test, how), "numbers": metrics.summarise(numbers),
        "history": {str(seed): {name: fit.history for name, fit in fits[seed].items()} for seed in seeds},
        "codes_by_epoch": {str(seed): fits[seed]["vqvae"].kept for seed in seeds}, "features": judge,
        "published": PUBLISHED,
        "real": {"majority": majority, "sharpness": metrics.sharpness(real),
                 "diversity": metrics.diversity(real, diverse, args.seed), "diversity_images": diverse,
                 "mean_photo_mse": float(losses.squared_error(mean_photo.expand_as(real), real).mean())},
        "parameters": {name: sum(p.numel() for module in fit.modules.values() for p in module.parameters())
                       for name, fit in fits[args.seed].items()}}
    results["accuracies"] = accuracies(results["numbers"], majority, len(test))
    pictures = draw(fits[args.seed], settings, test, mixtures[0], results["accuracies"], args.seed, args.signature)
    print(report.write_study(
        bench.folder, "Representations of photos: VAE, VQ-VAE, classifiers, mixture",
        f"{len(train):,} photos, {settings.epochs} epochs for each convolutional network", sections, pictures, results,
        began))
    return 0
