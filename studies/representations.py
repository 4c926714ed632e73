"""Study 3: learned representations of photos, for classification and sampling: VAE, VQ-VAE, classifiers, mixture.

Described: a VAE [1] with 128 latents on the photos of both sources, trained with 1, then 5, then 10 samples of z per
photo, squared error (mean over the pixels) + KL (mean over the dimensions); images from N(0, I) and their FID; on the
last source a ResNet-18 [2], an MLP on the VAE's means, a VQ-VAE [3] and an MLP on the mean of a photo's code indices,
and a mixture of 20 Gaussians of the means [4], whose samples are decoded. What the source report leaves open (layers,
learning rates, batches) is as in the notebook that it summarizes, which trains the VAE on both sources.
--variant tuned: 64 px, batch normalization, longer training with a learning rate schedule and augmentation, a KL weight
that suits the pixels' variance, an EMA codebook, features of the code map, components chosen on held-out
latents.

[1] Kingma & Welling 2014, arXiv:1312.6114       [3] van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937
[2] He et al. 2016 (ResNet), arXiv:1512.03385    [4] Ghosh et al. 2020 (density of latents), arXiv:1903.12436
"""
import dataclasses
import itertools
import math
import warnings

import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from sklearn.model_selection import train_test_split
from torchvision.transforms import functional as transforms

import vae
from common.stats import wilson_interval
from studies import figures, losses, metrics, report, vq
from studies.data import Images
from studies.photo_networks import QUICK, VARIANTS, VQVAE, Classifier, PhotoVAE, Settings  # noqa: F401 (for __main__)
from studies.report import Claim, Section, Table, percent
from studies.training import decode_prior, map_batches

TITLE = "Representations of photos: VAE, VQ-VAE, classifiers, mixture"
SUBTITLE = "{train:,} photos to train on, {held_out:,} held out, {side} px"
EXAMPLE = "python -m studies representations ANIMALS BUTTERFLIES --out representations --seeds 3 --variant tuned"
CHANNELS, NEEDS_CLASSES, TRAINS_ON_BOTH = 3, False, True
CLASSIFIERS = {"cnn": "photo, CNN", "mlp_latents": "VAE means, MLP", "mlp_codes": "VQ-VAE codes, MLP"}
AVERAGED = (1, 5, 10)  # decoded samples of q(z|x), a figure of ours
FID_IMAGES, FID_SIDE = 1000, 64  # how many, and their px for our own features
PUBLISHED = {"fid": 249.12, "vq_loss": (0.6843, 0.7257, 0.6455, 0.5920, 0.5504, 0.5583, 0.6023, 0.6055)}
ACTIVE = 0.01  # variance of the mean over photos from which a latent dimension counts as active
FID_TOLERANCE, LOSS_TOLERANCE, BLURRY = 0.1, 0.25, 0.5  # relative differences; share of the real photos' sharpness


def add_arguments(parser):
    """Adds the flags of this study alone."""
    parser.add_argument("--inception", action="store_true",
                        help="FID with Inception features too (package torch-fidelity, weights of 91 MB)")


def resized(images, side):
    """data.Images, or a tensor (N, 3, S, S), with photos of `side` px."""
    if isinstance(images, Images):
        return dataclasses.replace(images, pixels=resized(images.pixels, side))
    same = images.shape[2:] == (side, side)
    return images if same else torch.cat([transforms.resize(part, [side, side], antialias=True)
                                          for part in images.split(1024)])


def photo_sets(study, settings):
    """(training, held-out) Images of all sources together, for the VAE, and of the last source, with its classes."""
    splits = [tuple(resized(images, settings.side) for images in split) for split in study.splits]
    together = tuple(Images(torch.cat([images.pixels for images in part]), torch.full((sum(map(len, part)),), -1), [],
                            []) for part in zip(*splits))
    last = tuple(images if images.classes else dataclasses.replace(
        images, labels=torch.zeros_like(images.labels), classes=["all"]) for images in splits[-1])
    return together, last


def features_of(function, images):
    """data.Images whose "pixels" are features (N, D) of images."""
    return dataclasses.replace(images, pixels=map_batches(function, images.pixels))


def fit_mixture(latents, settings, seed):
    """vae.GaussianMixture of latents (N, D), with the number of components of the settings that is likeliest on a fifth
    set aside."""
    latents = latents.double().numpy()

    def fitted(components, points):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one that fits badly shows in its likelihood
            return vae.GaussianMixture(settings.reg_covar, tol=1e-3, max_iter=200).fit(
                points, kmeans_plusplus(points, components, random_state=seed)[0])

    if len(settings.components) == 1:
        return fitted(min(settings.components[0], len(latents)), latents)
    rest, aside = train_test_split(latents, test_size=0.2, random_state=seed)
    likelihood = {k: fitted(k, rest).score(aside) for k in settings.components if k <= len(rest)}
    return fitted(max(likelihood, key=likelihood.get), latents)


def train(study):
    """{"features": (function, facts), "inception": function, if asked for, (variant, seed): {"vae": PhotoVAE, "vqvae":
    VQVAE, each of CLASSIFIERS: Classifier, "mixture": vae.GaussianMixture}}."""
    models = {"inception": metrics.inception_features(study.run.device)} if study.args.inception else {}
    small = (resized(images, min(FID_SIDE, study.settings.side)) for images in study.splits[0])
    models["features"] = metrics.train_feature_extractor(study, *small)
    for variant, seed in itertools.product(study.variants, study.seeds):
        models[variant, seed] = train_networks(study, variant, seed)
    return models


def train_networks(study, variant, seed):
    """{name: model} of a variant and a seed."""
    settings, models = study.variants[variant], {}
    together, (photos, test) = photo_sets(study, settings)
    n_classes, mirrored = len(photos.classes), photos
    if settings.augmented:
        mirrored = dataclasses.replace(photos, pixels=torch.cat([photos.pixels, photos.pixels.flip(3)]),
                                       labels=photos.labels.repeat(2))

    def fit(name, network, arguments, images, epochs, batch_size, **metadata):
        torch.manual_seed(seed)  # the same first weights, whatever was trained or loaded before
        models[name] = study.run.fit(
            f"{name}_{variant}_seed{seed}", network(settings, *arguments), *images, epochs=epochs, seed=seed,
            batch_size=batch_size, metadata=metadata)

    def fit_mlp(name, encoder, function, epochs):
        images = features_of(function, mirrored), features_of(function, test)
        fit(name, Classifier, (n_classes, images[0].pixels.shape[1]), images, epochs,
            128 if settings.dropout else len(mirrored), encoder_epochs=len(encoder.history))

    fit("vae", PhotoVAE, (), together, settings.vae_epochs, settings.vae_batch_size)
    fit("cnn", Classifier, (n_classes,), (photos, test), settings.cnn_epochs, settings.cnn_batch_size)
    fit("vqvae", VQVAE, (), (photos, test), settings.vq_epochs, settings.vq_batch_size)
    fit_mlp("mlp_latents", models["vae"], models["vae"].encode, settings.mlp_epochs)
    fit_mlp("mlp_codes", models["vqvae"], models["vqvae"].features, settings.codes_mlp_epochs)
    models["mixture"] = fit_mixture(map_batches(models["vae"].encode, photos.pixels), settings, seed)
    return models


def averaged_reconstructions(model, pixels, seed):
    """Yields (k, images (N, 3, S, S)) for each k of AVERAGED: the mean of k decoded samples of q(z|x) of each photo."""
    mean, log_variance = map_batches(model.moments, pixels).chunk(2, dim=1)
    noise, total = torch.Generator().manual_seed(seed), 0
    for k in range(1, max(AVERAGED) + 1):
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=noise)
        total = total + map_batches(model.decode, z)
        if k in AVERAGED:
            yield k, total / k


def generated(model, mixture, n, seed):
    """{source of z: images (n, 3, S, S)} decoded from z ~ N(0, I) and from samples of the mixture of latents."""
    return {"N(0, I)": decode_prior(model.decode, model.latent, n, seed),
            "mixture": map_batches(model.decode, torch.from_numpy(mixture.sample(n, seed)[0]).float())}


def measure_fids(study, models, networks, seed):
    """{"SOURCE: what, features": FID} of FID_IMAGES images, or as many as are held out, against held-out photos."""
    model, found, side = networks["vae"], {}, min(FID_SIDE, study.settings.side)
    extractors = {"own": lambda images: models["features"][0](resized(images, side))}
    if "inception" in models:
        extractors["Inception"] = models["inception"]
    for i, (name, (photos, test)) in enumerate(zip(report.source_names(study.args.data), study.splits)):
        n = min(FID_IMAGES, len(photos), len(test))
        latents = map_batches(model.encode, resized(photos.subsample(n, seed).pixels, model.settings.side))
        images = {**generated(model, networks["mixture"], n, seed), "latents of its photos": map_batches(
            model.decode, latents)}
        if i < len(study.splits) - 1:
            del images["mixture"]  # which is that of the last source
        for kind, extract in extractors.items():
            found.update({f"{name}: {what}, {kind} features": value for what, value in metrics.fids(
                extract, photos, test.subsample(n, seed), images, seed).items()})
    return found


def measure_seed(study, models, variant, seed):
    """Numbers of the networks of a seed."""
    settings, networks = study.variants[variant], models[variant, seed]
    model, quantized, mixture = (networks[name] for name in ("vae", "vqvae", "mixture"))
    (_, held_out), (_, test) = photo_sets(study, settings)
    counts, last = map_batches(quantized.encode, test.pixels).long().flatten().bincount(), model.history[-1]
    sources = {"cnn": test, "mlp_latents": features_of(model.encode, test),
               "mlp_codes": features_of(quantized.features, test)}
    found = {
        **{name: last[f"test_{name}"] for name in ("loss", "reconstruction", "kl")},
        "active": int((map_batches(model.encode, held_out.pixels).var(0) > ACTIVE).sum()),
        "components": len(mixture.weights_),
        "seconds": model.seconds, **quality(map_batches(model.reconstruct, held_out.pixels), held_out.floats(), "mean"),
        "sharpness_samples": metrics.sharpness(decode_prior(model.decode, model.latent, len(held_out), seed))}
    for k, averages in averaged_reconstructions(model, held_out.pixels, seed):
        found.update(quality(averages, held_out.floats(), k))
    return {
        "vae": found, "fid": measure_fids(study, models, networks, seed),
        "vqvae": {**quality(map_batches(quantized.reconstruct, test.pixels), test.floats(), "codes"),
                  "perplexity": vq.perplexity(counts), "active_codes": int((counts > 0).sum()),
                  "seconds": quantized.seconds},
        **{name: networks[name].accuracies(images) for name, images in sources.items()}}


def quality(images, real, name):
    """Mean squared error, in [0, 1], and sharpness of reconstructions of `real`, under keys that end in `name`."""
    return {f"mse_{name}": float(losses.mse_per_image(images, real).mean()),
            f"sharpness_{name}": metrics.sharpness(images)}


def measure(study, models):
    """{"numbers": {variant: {model: {measure: {"mean", "sd", "values"}}}}, "accuracies": {name: {"held_out", its 95 %
    "interval", "sd" over seeds, "training"}}, ...} for results.json."""
    numbers = {variant: metrics.summarise([measure_seed(study, models, variant, seed) for seed in study.seeds])
               for variant in study.variants}
    _, (photos, test) = photo_sets(study, study.settings)

    def line(held_out, sd=None, training=None):
        return {"held_out": held_out, "interval": wilson_interval(round(held_out * len(test)), len(test)),
                "sd": sd, "training": training}

    return {
        "numbers": numbers, "features": models["features"][1], "published": PUBLISHED, "classes": photos.classes,
        "real": {variant: real_numbers(*photo_sets(study, changed)[0]) for variant, changed in study.variants.items()},
        "accuracies": {"most frequent class": line(metrics.majority_baseline(photos.labels, test.labels)), **{
            f"{title}, {variant}": line(found[name]["accuracy"]["mean"], found[name]["accuracy"]["sd"],
                                        found[name]["train_accuracy"]["mean"])
            for variant, found in numbers.items() for name, title in CLASSIFIERS.items()}},
        "history": {f"{variant} {seed} {name}": models[variant, seed][name].history
                    for variant, seed in itertools.product(study.variants, study.seeds)
                    for name in ("vae", "vqvae", *CLASSIFIERS)}}


def real_numbers(photos, held_out):
    """Numbers of held-out photos; in place of reconstructions, the mean training photo."""
    average = (photos.pixels.float().mean(0) / 255).expand(len(held_out), -1, -1, -1)
    sharpness = metrics.sharpness(held_out.floats())
    return {"mse_mean": float(losses.mse_per_image(average, held_out.floats()).mean()), "sharpness_mean": sharpness,
            "sharpness_samples": sharpness}


def conclusions(study, models, results):
    """What the source report concludes, compared with the described networks here."""
    found, n_classes = results["numbers"]["described"], len(results["classes"])
    trivial = ", as any classifier of one class" * (n_classes == 1)
    vq_loss, mlp_loss = (np.mean([models["described", seed][name].curve("train_loss") for seed in study.seeds],
                                 0).tolist() for name in ("vqvae", "mlp_latents"))
    fid = next((value["mean"] for name, value in found["fid"].items()
                if "N(0, I)" in name and name.endswith("Inception features")), None)
    real, published = results["real"]["described"]["sharpness_samples"], PUBLISHED["vq_loss"]
    blur = found["vae"]["sharpness_samples"]["mean"] / real if real else math.nan
    early = mlp_loss[4] if len(mlp_loss) > 4 else None
    apart = [abs(ours / theirs - 1) for ours, theirs in zip(vq_loss, published)]
    return [
        Claim(f"FID of 1,000 images from N(0, I), Inception features, 5,316 photos: {PUBLISHED['fid']}",
              "not measured with these features (--inception)" if fid is None else report.number(fid),
              None if fid is None else abs(fid / PUBLISHED["fid"] - 1) < FID_TOLERANCE),
        *(Claim(f"{title}: accuracy 100 % (60 photos of one class)", percent(found[name]["accuracy"]["mean"]) + trivial,
                found[name]["accuracy"]["mean"] == 1) for name, title in CLASSIFIERS.items()),
        Claim("VAE means, MLP: loss 0.0000 after 5 epochs", f"{report.number(early)}{trivial}",
              None if early is None else early < 5e-5),  # which is printed as 0.0000
        Claim(f"VQ-VAE, loss by epoch: {report.join_numbers(published, 4)}",
              report.join_numbers(vq_loss[:len(published)], 4),
              max(apart) < LOSS_TOLERANCE if len(vq_loss) == len(published) else None),
        Claim("generated images appear smooth or blurry",
              f"their variance of the Laplacian is {percent(blur)} of that of real photos",
              None if math.isnan(blur) else blur < BLURRY)]


def sections(study, models, results, picture):
    """The report's sections; the figures are of the first seed's networks."""
    numbers, settings, real = results["numbers"], study.settings, results["real"]
    caption = f"{results['data']['held_out']:,} held-out photos; {report.seeds_text(results)}."
    weight = settings.kl_weight * 3 * settings.side ** 2 / settings.latent
    active = report.number(numbers["described"]["vae"]["active"], 3)
    decoded = {**{k: f"mean of {k} decoded samples" if k > 1 else "one decoded sample" for k in AVERAGED},
               "mean": "decoded mean of q(z|x)"}
    rows = {"loss": "loss", "reconstruction": "  reconstruction, mean over pixels in [-1, 1]",
            "kl": "  KL, mean over dimensions, nats", "active": f"active dimensions of {settings.latent}",
            **{f"{key}_{name}": f"{title}, {what}" for key, title in (
                ("mse", "mean squared error in [0, 1]"), ("sharpness", "sharpness")) for name, what in decoded.items()},
            "sharpness_samples": "sharpness, z ~ N(0, I)", "components": "components of the mixture",
            "seconds": "training, seconds"}

    def part(name):
        return {variant: found[name] for variant, found in numbers.items()}

    return [
        Section("Classes", ["There is one class: a classifier that never sees a photo has an accuracy of 100 % too, so "
                            "that it says nothing about the representations."] * (len(results["classes"]) == 1), [
            Table(f"Accuracy on {len(study.splits[-1][1]):,} held-out photos; {report.seeds_text(results)}.",
                  ["classified from", "held-out (95 % interval)", "sd over seeds", "training"],
                  [[name, percent(one["held_out"], one["interval"]),
                    *("–" if one[key] is None else percent(one[key]) for key in ("sd", "training"))]
                   for name, one in results["accuracies"].items()])]),
        Section("VAE", [
            f"The described loss is a mean over {3 * settings.side ** 2:,} numbers of a photo + a mean over "
            f"{settings.latent} dimensions: compared with the ELBO of unit variance, the KL weighs {weight / 2:,.0f} "
            f"times as much. After training {active} of {settings.latent} dimensions are active (the variance of their "
            f"means exceeds {ACTIVE})."], [report.comparison_table(
                f"{caption} Sharpness: variance of the Laplacian. Real photos: the mean training photo in place of "
                "reconstructions.", {**part("vae"), **{f"real photos, {name}": one for name, one in real.items()}},
                rows)]),
        Section("FID", [report.features_text(results["features"])], [report.comparison_table(
            f"At most {FID_IMAGES:,} images each against as many held-out photos of the source named.", part("fid"))]),
        Section("VQ-VAE", [], [report.comparison_table(
            f"{len(study.splits[-1][1]):,} held-out photos; {report.seeds_text(results)}.", part("vqvae"), {
                "mse_codes": "mean squared error in [0, 1]", "sharpness_codes": "sharpness",
                "active_codes": "codes that occur", "perplexity": "perplexity of the codes",
                "seconds": "training, seconds"})]),
        *(Section(f"Figures: {variant}", (), (), pictures(variant, study, models, results, picture))
          for variant in study.variants)]


def pictures(variant, study, models, results, picture):
    """The pictures of a variant's networks."""
    seed, settings, found = study.args.seed, study.variants[variant], results["numbers"][variant]["vae"]
    networks, real = models[variant, seed], results["real"][variant]
    model, quantized, mixture = (networks[name] for name in ("vae", "vqvae", "mixture"))
    (_, held_out), (_, test) = photo_sets(study, settings)
    some, strip, drawn = held_out.subsample(48, seed), test.subsample(8, seed), generated(model, mixture, 100, seed)
    averages = {f"mean of {k}" if k > 1 else "1 sample": images for k, images in averaged_reconstructions(
        model, strip.pixels, seed)}
    mse, kl, vq_loss = (network.curve(f"train_{name}") for network, name in (
        (model, "reconstruction"), (model, "kl"), (quantized, "loss")))
    distances = [report.number(metrics.mean_pairwise_l2(images), 3) for images in (
        *drawn.values(), held_out.subsample(100, seed).floats())]
    k, used = len(mixture.weights_), ", ".join(map(str, settings.z_samples))
    return [
        picture(f"loss_{variant}", figures.curves_figure({
            "total": model.curves("loss"), "reconstruction": model.curves("reconstruction"), "KL": model.curves("kl")},
            {"total": "loss", "reconstruction": "mean squared error", "KL": "nats per dimension"}),
            f"{variant}: loss of the VAE against epochs. Samples of z per photo, by epoch: {used}.",
            f"In training the reconstruction error goes from {mse[0]:.3g} to {mse[-1]:.3g}. The KL goes from "
            f"{kl[0]:.3g} to {kl[-1]:.3g} nats per dimension."),
        picture(f"reconstructions_{variant}", figures.rows_figure(
            {"photo": some.floats(), "decoded": map_batches(model.reconstruct, some.pixels)}, 8),
            f"{variant}: held-out photos drawn at random, each above its reconstruction from the mean of q(z|x).",
            f"The mean squared error of all reconstructions is {report.number(found['mse_mean'], 3)}. That of the mean "
            f"training photo is {real['mse_mean']:.3g}."),
        picture(f"averaged_{variant}", figures.rows_figure({"photo": strip.floats(), **averages}),
                f"{variant}, a figure of ours: the mean of {report.join_numbers(AVERAGED)} decoded samples of q(z|x)."),
        picture(f"samples_{variant}", figures.grid_figure(
            {f"z ~ {what}": resized(images, min(64, settings.side)) for what, images in drawn.items()}, 10, 1),
            f"{variant}: images decoded from N(0, I) and from the mixture of the means, which has {k} component"
            + ("s." if k > 1 else ": it is a single Gaussian.") + " Shown at 64 px." * (settings.side > 64),
            f"The variance of the Laplacian of images from N(0, I) is {found['sharpness_samples']['mean']:.3g}, that "
            f"of real photos {real['sharpness_samples']:.3g}. The mean pairwise L2 is {distances[0]} from N(0, I), "
            f"{distances[1]} from the mixture and {distances[2]} of real photos."),
        picture(f"vq_reconstructions_{variant}", figures.rows_figure(
            {"photo": strip.floats(), "VQ-VAE": map_batches(quantized.reconstruct, strip.pixels)}),
            f"{variant}: held-out photos, each above what the VQ-VAE makes of its {settings.side // 4} x "
            f"{settings.side // 4} codes."),
        picture(f"vq_loss_{variant}", figures.curves_figure(
            {name: quantized.curves(name) for name in ("loss", "mse", "perplexity")},
            {"loss": "loss", "mse": "mean squared error", "perplexity": "codes"}),
            f"{variant}: loss of the VQ-VAE, its reconstruction term, and the perplexity of the codes of a batch, "
            f"{settings.num_embeddings} at most.",
            f"In training the loss goes from {vq_loss[0]:.3g} to {vq_loss[-1]:.3g}."),
        picture(f"classifiers_{variant}", figures.curves_figure({
            title: networks[name].curves("error_rate") for name, title in CLASSIFIERS.items()}, "error rate"),
            f"{variant}: error rates of the three classifiers against epochs.")]
