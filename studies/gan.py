"""Study 4: a generative adversarial network (GAN) [1] of the DCGAN kind [2], watched while it trains.

A GAN's losses say little of its pictures. So every few epochs its samples are measured against images that it was not
trained on: FID, precision and recall [3], diversity, sharpness; a collapse onto few pictures is told by a criterion
stated beforehand. In the end the nearest training images of the samples show whether it has learnt by heart.

[1] Goodfellow et al. 2014, arXiv:1406.2661    [3] Kynkäänniemi et al. 2019, arXiv:1904.06991
[2] Radford et al. 2016, arXiv:1511.06434
"""
import dataclasses
import functools
import math
import sys
import time
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import nn

from studies import data, engine, figures, metrics, report
from studies.figures import Picture
from studies.report import Section, Table

EXAMPLE = "python -m studies gan paintings/ --out gan"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour images of 64 x 64 px, in [-1, 1] inside the networks."""
    # model: strided convolutions of 4 x 4, batch normalisation but at the images' ends, ReLU and LeakyReLU, tanh [2]
    side: int = 64
    noise: int = 100
    width: int = 64             # channels at half the side; they double as the side halves, down to 4 px
    slope: float = 0.2          # of the LeakyReLU
    spread: float = 0.02        # weights from normal(0, spread), those of the norms from normal(1, spread)
    # training: binary cross-entropy, the generator's non-saturating
    optimizer: str = "Adam"
    rate: float = 2e-4
    betas: Tuple[float, float] = (0.5, 0.999)
    batch: int = 64
    epochs: int = 100
    # measurement
    test_share: float = 0.2     # held out where the data has no test files
    most_train: int = 60_000
    most_test: int = 2000       # as many samples are measured
    measure_every: int = 5      # epochs
    diversity_images: int = 256
    judged: int = 256           # images of each part that the discriminator is asked about after an epoch
    neighbours: int = 3         # of precision and recall
    feature_steps: int = 1500   # batches that the network behind the FID is trained for
    # signs of trouble
    little_diversity: float = 0.5  # collapse: of the mean distance of two held-out images
    little_recall: float = 0.1     # collapse: of the recall of training images
    little_loss: float = 0.1       # nats; the discriminator has all but won


QUICK = {"width": 32, "epochs": 15, "measure_every": 3, "most_train": 1000, "most_test": 250, "feature_steps": 120}
FRAMES = 16  # samples in a frame of the GIF


# --------------------------------------------------------------------------------------------------------------- model

def _initialise(module, spread):
    """Weights from normal(0, spread), of norms from normal(1, spread), no bias [2]; in place."""
    for part in module.modules():
        if getattr(part, "weight", None) is not None:
            nn.init.normal_(part.weight, float(isinstance(part, nn.BatchNorm2d)), spread)
        if getattr(part, "bias", None) is not None:
            nn.init.zeros_(part.bias)


class Generator(nn.Module):
    """Noise -> 512 x 4 x 4 -> 256 x 8 x 8 -> 128 x 16 x 16 -> 64 x 32 x 32 -> 3 x 64 x 64."""

    def __init__(self, settings):
        super().__init__()
        self.noise, width = settings.noise, settings.width * settings.side // 8
        layers = [nn.Linear(self.noise, width * 16, bias=False), nn.Unflatten(1, (width, 4, 4)), nn.BatchNorm2d(width)]
        while width > settings.width:
            width //= 2
            layers += [nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width)]
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())
        _initialise(self, settings.spread)

    def forward(self, noise):
        """Noise (B, 100) -> images (B, 3, S, S) in [0, 1]."""
        return (self.body(noise) + 1) / 2


class Discriminator(nn.Module):
    """The generator mirrored. Its norms go by the batch at hand always: running averages would mix real images and
    samples, which are normalised apart."""

    def __init__(self, settings):
        super().__init__()
        width = settings.width
        layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(settings.slope)]
        while width < settings.width * settings.side // 8:
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                       nn.BatchNorm2d(2 * width, track_running_stats=False), nn.LeakyReLU(settings.slope)]
            width *= 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 1))
        _initialise(self, settings.spread)

    def forward(self, x):
        """Images (B, 3, S, S) in [0, 1] -> logits (B,) of being real."""
        return self.body(2 * x - 1)[:, 0]

    def judge(self, x):
        """Images (B, 3, S, S) in [0, 1] -> D(x), the probability (B,) of being real."""
        return self(x).sigmoid()


def discriminator_loss(real, fake):
    """-log D(x) - log(1 - D(G(z))) in nats, the mean over logits (B,) of real images and of samples [1, eq. 1];
    2 log 2 = 1.386 where it cannot tell them apart."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake):
    """-log D(G(z)) in nats, the mean over logits (B,) of samples: the non-saturating loss [1, section 3]."""
    return F.softplus(-fake).mean()


# ------------------------------------------------------------------------------------------------------------ training

def update(modules, optimizers, batch, backward):
    """One step of the discriminator, then one of the generator on the same samples, for engine.fit."""
    generator, discriminator = modules["generator"], modules["discriminator"]
    fake = generator(batch.normal(generator.module.noise))
    real_logits, fake_logits = discriminator(batch.x), discriminator(fake.detach())
    losses = {"discriminator": discriminator_loss(real_logits, fake_logits)}
    optimizers["discriminator"].zero_grad(set_to_none=True)
    backward(losses["discriminator"])
    optimizers["discriminator"].step()
    discriminator.requires_grad_(False)  # the generator's step has no use for those gradients
    losses["generator"] = generator_loss(discriminator(fake))
    optimizers["generator"].zero_grad(set_to_none=True)
    backward(losses["generator"])
    optimizers["generator"].step()
    discriminator.requires_grad_(True)
    return {**losses, "real": real_logits.sigmoid().mean(), "fake": fake_logits.sigmoid().mean()}


def train_one(bench, settings, train, test, real, features, seed):
    """engine.Fitted of the two networks for one seed; `kept` has a dict an epoch, see _watch."""
    with engine.seeded(seed, 1):
        modules = {"generator": Generator(settings), "discriminator": Discriminator(settings)}
    make = getattr(torch.optim, settings.optimizer)
    optimizers = {name: make(module.parameters(), settings.rate, settings.betas) for name, module in modules.items()}
    about = {key: getattr(settings, key) for key in (
        "side", "noise", "width", "slope", "spread", "rate", "measure_every", "diversity_images", "judged",
        "neighbours", "feature_steps")}
    about.update(model="dcgan", betas=list(settings.betas), held_out=engine.fingerprint(test))
    # channels_last: 76 images a second in place of 70, on one core
    return engine.fit(bench, f"gan_seed{seed}", modules, optimizers, None, train, None, epochs=settings.epochs,
                      batch=settings.batch, seed=seed, about=about, update=update, channels_last=True,
                      each_epoch=lambda *now: _watch(*now, settings, train, test, real, features, seed))


def _watch(modules, epoch, settings, train, test, real, features, seed):
    """{"frame": uint8 (16, 3, S, S), "train", "test": mean D(x) of each part, "measured": numbers or None}."""
    generator, discriminator = modules["generator"], modules["discriminator"]
    measured = epoch % settings.measure_every == 0 or epoch == settings.epochs
    drawn = samples(generator, real["images"] if measured else FRAMES, seed)
    held, trained = (images[:settings.judged] for images in compared(train, test, seed))
    even = max(1, len(held) // settings.batch) * settings.batch  # the norms go by batches of one size
    return {"frame": drawn[:FRAMES].clone(),
            **{part: float(engine.mapped(discriminator.judge, images[:even], settings.batch).mean())
               for part, images in (("train", trained), ("test", held))},
            "measured": {"epoch": epoch, **measure(drawn, real, features, settings)} if measured else None}


# --------------------------------------------------------------------------------------------------------- measurement

def samples(generator, n, seed):
    """n images uint8 (n, 3, S, S) of a generator in evaluation mode, whose norms go by running averages: a sample does
    not depend on its company. The first ones are the same for every n."""
    noise = torch.randn(max(n, 2000), generator.noise, generator=engine.generator(seed, 21))[:n]
    return engine.mapped(generator, noise, batch=250).mul(255).round().byte()


def compared(train, test, seed):
    """As many held-out as training images, uint8 (n, 3, S, S) each, drawn at random."""
    n = min(len(train), len(test))
    return tuple(images.pixels[torch.randperm(len(images), generator=engine.generator(seed, 11))[:n]]
                 for images in (test, train))


def looks(images, settings):
    """{"diversity", "sharpness"} of images uint8 (N, 3, S, S)."""
    x = images.float() / 255
    return {"diversity": metrics.mean_pairwise_l2(x[:settings.diversity_images]), "sharpness": metrics.sharpness(x)}


def measure(drawn, real, features, settings):
    """{"fid", "precision", "recall", "diversity", "sharpness"} of samples uint8 (N, 3, S, S) against real_values."""
    placed = features(drawn)
    precision, recall = metrics.precision_recall(real["features"], placed, settings.neighbours)
    return {"fid": metrics.fid(real["features"], placed), "precision": precision, "recall": recall,
            **looks(drawn, settings)}


def real_values(settings, train, test, features, seed):
    """What samples are compared with: the features of held-out images, what as many training images get in the
    samples' place, and the looks of the held-out ones."""
    held, trained = compared(train, test, seed)
    real = {"images": len(held), "in_pairs": min(settings.diversity_images, len(held)), "features": features(held)}
    return {**real, **measure(trained, real, features, settings), **looks(held, settings)}


def final_numbers(fitted, rows, real, features, inception, train, test, seed):
    """What one training is worth in the end: a dict of numbers, and {space: indices (N, 3)} of the samples'
    nearest training images."""
    drawn, last, index = samples(fitted.modules["generator"], real["images"], seed), fitted.kept[-1], {}
    found = {key: value for key, value in rows[-1].items() if key != "epoch"}
    if inception:
        found["inception_fid"] = metrics.fid(real["inception"], inception(drawn))
    for space, place in (("features", features), ("pixels", lambda images: images)):
        numbers, index[space] = metrics.copying(place(drawn), place(test.pixels), place(train.pixels))
        found.update({f"{space}_{key}": value for key, value in numbers.items()})
    return {**found, "judged_train": last["train"], "judged_test": last["test"], "seconds": fitted.seconds}, index


# ------------------------------------------------------------------------------------------------------------- collapse

def collapse_signs(row, real, settings):
    """Which of "diversity" and "recall" are small at a measured epoch."""
    limits = {"diversity": settings.little_diversity, "recall": settings.little_recall}
    return [key for key, share in limits.items() if row[key] < share * real[key]]


def criterion(settings):
    """The words for collapse_signs and what verdict makes of them."""
    return (f"Signs of collapse: a mean distance of two samples below {settings.little_diversity:.0%} of that of two "
            f"held-out images, or a recall below {settings.little_recall:.0%} of that of training images. They count "
            "after a measured epoch without any; before the first of these: not learnt yet.").replace("%", " %")


def verdict(rows, history, real, settings):
    """{"unlearnt": the measured epochs with signs before the first without; "epochs": those after it; "since": the one
    from which on all show signs, or None; "won": the epochs with a discriminator's loss of next to nothing; "text"} of
    one training. Where no epoch is without, none is in either list."""
    signs = {row["epoch"]: collapse_signs(row, real, settings) for row in rows}
    sound = [epoch for epoch, found in signs.items() if not found]
    early = [epoch for epoch in signs if sound and epoch < sound[0]]
    epochs = [epoch for epoch, found in signs.items() if sound and found and epoch > sound[0]]
    lasting = [epoch for epoch in epochs if epoch > sound[-1]]
    kinds = " and ".join(sorted({kind for epoch in (lasting if sound else signs) for kind in signs[epoch]}))
    if not sound:
        text = ("collapse: no measured epoch is free of signs: too little learnt to tell, or collapsed from the start; "
                f"by {kinds}")
    elif lasting:
        text = f"collapse: from epoch {lasting[0]} to the last, by {kinds}"
    elif epochs:
        text = (f"collapse: no sign in the end; signs at {len(epochs)} of {len(rows)} measured epochs, the last of "
                f"them epoch {epochs[-1]}")
    else:
        text = f"collapse: no sign at {len(rows) - len(early)} measured epochs"
    if early:
        text += f"; not learnt yet at {len(early)} before epoch {sound[0]}"
    won = [row["epoch"] for row in history if row["train"]["discriminator"] < settings.little_loss]
    text += (f". The discriminator's loss is below {settings.little_loss} nats in {len(won)} of {len(history)} epochs"
             + (f", first in epoch {won[0]}." if won else "."))
    return {"unlearnt": early, "epochs": epochs, "since": lasting[0] if lasting else None, "won": won, "text": text}


# ------------------------------------------------------------------------------------------------------------- pictures

def draw(fitted, rows, index, settings, train, test, real, seed, signature):
    """{name: Picture} of the first seed's training."""
    drawn, epochs = samples(fitted.modules["generator"], 64, seed), len(fitted.history)
    some = torch.randperm(len(test), generator=engine.generator(seed, 23))[:64]
    shown = [i for i in range(epochs) if i % math.ceil(epochs / 100) == 0 or i == epochs - 1]
    nearest = {f"{space} {i + 1}": train.pixels[found[:8, i]] for space, found in index.items()
               for i in range(found.shape[1])}

    def measured(unit, reference, *keys):
        return (unit, {key: ([row["epoch"] for row in rows], [row[key] for row in rows]) for key in keys},
                {key: real[key] for key in keys}, f"{reference} images")

    def sheets(groups):
        return figures.sheet_png({title: images.float() / 255 for title, images in groups.items()}, 8, signature)

    def plot(figure):
        return figures.png_bytes(figure, signature)

    pictures = [
        Picture("losses", plot(figures.curves_figure(
            {"losses in training": {name: fitted.curve("train", name) for name in ("generator", "discriminator")}},
            "nats")),
            f"Losses of the generator and of the discriminator against {epochs} epochs.",
            "Means over each epoch. A discriminator that cannot tell has a loss of 2 log 2 = 1.386, and the generator "
            "then one of 0.693. Neither loss says how good the pictures are."),
        Picture("discriminator", plot(figures.curves_figure(
            {"in training": {"D(x), training images": fitted.curve("train", "real"),
                             "D(G(z)), samples": fitted.curve("train", "fake")},
             "after each epoch": {f"{label} D(x)": [kept[part] for kept in fitted.kept]
                                  for label, part in (("training", "train"), ("held-out", "test"))}},
            "mean probability of being real")),
            "Two panels against epochs: D(x) and D(G(z)) in training; D(x) of training and of held-out images.",
            "Left: while it trained. Right: as many training as held-out images; where it learns its images by heart, "
            "the first are the more real to it."),
        Picture("measured", plot(figures.measured_figure(
            {"FID": measured("FID", "training", "fid"),
             "precision and recall": measured("share", "training", "precision", "recall"),
             "diversity": measured("mean pairwise L2", "held-out", "diversity"),
             "sharpness": measured("variance of the Laplacian", "held-out", "sharpness")})),
            "Four panels against epochs: FID, precision and recall, diversity, sharpness of samples and of real ones.",
            f"{real['images']:,} samples at each measured epoch, of the same noise, against as many held-out images; "
            f"diversity: the first {real['in_pairs']} of each. Dashed: what real images get."),
        Picture("samples", sheets({f"samples after epoch {epochs}": drawn, "held-out images": test.pixels[some]}),
                f"Two sheets: {len(drawn)} samples of the generator, and {len(some)} held-out images.",
                f"The first {len(drawn)} samples, not selected, beside held-out images drawn at random."),
        Picture("through_time", figures.gif_bytes([sheets({f"epoch {i + 1}": fitted.kept[i]["frame"]}) for i in shown]),
                f"Animation: {FRAMES} samples of the same noise after each epoch, from 1 to {epochs}.",
                f"{FRAMES} samples, not selected, of the same noise through the training."),
        Picture("neighbours", plot(figures.rows_figure(
            {name: images.float() / 255 for name, images in {"sample": drawn[:8], **nearest}.items()})),
            "Eight samples in the first row, below each its three nearest training images by features and by pixels.",
            "The first eight samples, not selected, and the training images nearest to them: by the distance of the "
            "features that the FID goes by, and by that of the pixels. A copy would have its original below it.")]
    return {picture.name: picture for picture in pictures}


# --------------------------------------------------------------------------------------------------------------- report

ROWS = (  # title, how to read it, key, what stands beside it
    ("FID", "lower is better", "fid", "training images"),
    ("FID of Inception features", "lower is better; inflated below 2,048 images", "inception_fid", "training images"),
    ("precision", "samples among held-out images, higher is better", "precision", "training images"),
    ("recall", "held-out images among samples, higher is better", "recall", "training images"),
    ("diversity, mean pairwise L2", "near that of real images", "diversity", "held-out"),
    ("sharpness, variance of the Laplacian", "near that of real images", "sharpness", "held-out"),
    ("distance to the nearest training image, pixels", "ratio of the medians", "pixels_ratio", "held-out"),
    ("  within that of the nearest 1 %, pixels", "near that of real images", "pixels_closer", "held-out"),
    ("distance to the nearest training image, features", "ratio of the medians", "features_ratio", "held-out"),
    ("  within that of the nearest 1 %, features", "near that of real images", "features_closer", "held-out"),
    ("D(x) of training images", "0.5 cannot tell", "judged_train", ""),
    ("D(x) of held-out images", "near that of training images", "judged_test", ""),
    ("training", "seconds", "seconds", ""))


def more_or_fewer(interval, other):
    """How a share compares with another, in words, by their intervals: it is said where these do not meet."""
    return "more" if interval[0] > other[1] else "fewer" if interval[1] < other[0] else "not surely more or fewer"


def _copying_text(numbers, n):
    parts = []
    for space in ("pixels", "features"):
        interval, other = numbers[f"{space}_interval"], numbers[f"{space}_real_interval"]
        parts.append(f"by {space} {report.share(numbers[f'{space}_closer'], interval)} of the samples, "
                     f"{more_or_fewer(interval, other)} than of held-out images, "
                     f"{report.share(numbers[f'{space}_real'], other)}")
    return ("The nearest 1 % of one half of the held-out images set a distance to the training images. Within it lie, "
            f"of {n:,} samples of the first seed and of the other half, with 95 % intervals: {'; '.join(parts)}. More "
            "or fewer is said where the intervals do not meet. A smooth picture is near to many others in pixels "
            "without being a copy, so the neighbours below are to be looked at.")


def _judge_text(judge, guessing):
    right, learnt = report.share(judge["accuracy"], judge["interval"]), report.share(judge["train_accuracy"])
    weak = report.weak_features(judge, guessing, "FID, precision and recall, and a sign of collapse by recall, decide "
                                "little here; diversity and the neighbours are to be looked at")
    return ("FID, precision and recall: features of a classifier trained on the training images to tell "
            f"{judge['what']}; after {judge['epochs']} epochs {right} right on the held-out ones (95 % interval; "
            f"guessing: {report.share(guessing)}), {learnt} on those it learnt from. What it cannot tell, its features "
            "do not tell either." + weak)


def sections(results, pictures):
    """The report's sections from results.json and the pictures."""
    found, judge, about, real = (results[key] for key in ("numbers", "features", "data", "real"))
    settings, seeds, n = Settings(**results["settings"]), results["seeds"], real["images"]
    first = results["measured"][str(seeds[0])]
    best = min(first, key=lambda row: row["fid"])
    numbers = Table(
        f"{n:,} samples against {n:,} held-out images, diversity by the first {real['in_pairs']} of each; "
        f"{'one seed' if len(seeds) == 1 else f'mean ± standard deviation of {len(seeds)} seeds'}.",
        ["measure", "GAN", "real images", "how to read it"],
        [[title, report.number(found[key]), f"{beside} {report.number(real[key])}" if beside else "", reading]
         for title, reading, key, beside in ROWS if key in found])
    keys = [key for key in first[0] if key != "epoch"]
    early = results["collapse"][str(seeds[0])]["unlearnt"]
    through = Table(f"Seed {seeds[0]}, every measured epoch.", ["epoch", "FID", *keys[1:], "sign of collapse"], [
        [row["epoch"], *(report.number(row[key], 3) for key in keys),
         (" and ".join(collapse_signs(row, real, settings)) or "none") + ", not learnt yet" * (row["epoch"] in early)]
        for row in first])
    return [
        Section("What was measured", [
            f"The GAN was trained on {about['train']:,} images; {about['held_out']:,}, which a GAN is usually given "
            "too, were held out, so that FID and neighbours can be compared with what real images get.",
            _judge_text(judge, results["guessing"]),
            f"Beside them: what {n:,} training images, which the classifier has seen, get in the samples' place. "
            "All are comparable within this report alone, not with those of Inception features. Precision: the share "
            "of samples within the held-out images' neighbourhoods; recall: the share of held-out images within the "
            f"samples'; a neighbourhood reaches to the k-th nearest of its kind, k = {settings.neighbours}.",
            f"Lowest FID of seed {seeds[0]}: {report.number(best['fid'])} at epoch {best['epoch']}; the table is of "
            "the last epoch, which was not chosen by it."], [numbers]),
        Section("Collapse", [criterion(settings),
                             *(f"Seed {seed}: {results['collapse'][str(seed)]['text']}" for seed in seeds)],
                [through], [pictures["measured"]]),
        Section("Training", [], [], [pictures["losses"], pictures["discriminator"]]),
        Section("Samples", [], [], [pictures["samples"], pictures["through_time"]]),
        Section("Is it copying?", [_copying_text(results["copying"], n)], [], [pictures["neighbours"]]),
        report.run_section(results)]


# --------------------------------------------------------------------------------------------------------- command line

add_arguments = metrics.add_inception_flag


def run(args):
    """The whole study; returns the exit code. Raises InputError."""
    began = time.monotonic()
    settings = Settings(**(QUICK if args.quick else {}))
    settings = dataclasses.replace(settings, epochs=args.epochs or settings.epochs)
    train, test, how = data.for_study(args, settings, 3)
    if args.inception:
        metrics.inception_features(args.inception)  # what is wrong with it should be told before hours of training
    bench = engine.open_bench(args.out, args.device, args.devices, args.precision, args.resume)
    seeds = range(args.seed, args.seed + args.seeds)
    net, judge = metrics.train_feature_net(bench, train, test, settings.feature_steps, seed=args.seed)

    features = functools.partial(engine.mapped, net.features)
    real = real_values(settings, train, test, features, args.seed) if bench.leads else None
    fits = {seed: train_one(bench, settings, train, test, real, features, seed) for seed in seeds}
    if not bench.leads:
        return 0

    print("measuring", file=sys.stderr)
    inception = metrics.inception_features(args.inception, bench.fabric.device) if args.inception else None
    if inception:
        held, trained = map(inception, compared(train, test, args.seed))
        real.update(inception=held, inception_fid=metrics.fid(held, trained))
    measured = {seed: [kept["measured"] for kept in fits[seed].kept if kept["measured"]] for seed in seeds}
    for seed, fit in fits.items():
        if not fit.kept[-1]["measured"]:  # it was to be a longer training when it came to this epoch
            drawn = samples(fit.modules["generator"], real["images"], seed)
            measured[seed].append({"epoch": settings.epochs, **measure(drawn, real, features, settings)})
    finals = {seed: final_numbers(fits[seed], measured[seed], real, features, inception, train, test, seed)
              for seed in seeds}
    first = finals[args.seed][0]
    pictures = draw(fits[args.seed], measured[args.seed], finals[args.seed][1], settings, train, test, real, args.seed,
                    args.signature)
    collapse = {str(seed): verdict(measured[seed], fits[seed].history, real, settings) for seed in seeds}
    results = {
        **report.run_facts(args, bench, settings, train, test, how),
        "numbers": {key: metrics.mean_and_sd([finals[seed][0][key] for seed in seeds]) for key in first
                    if not key.endswith(("_interval", "_real"))},
        "measured": {str(seed): rows for seed, rows in measured.items()},
        "collapse": collapse, "criterion": criterion(settings), "features": judge,
        "copying": {key: value for key, value in first.items() if key.startswith(("pixels", "features"))},
        "guessing": metrics.majority_baseline(train.labels, test.labels) if "classes" in judge["what"] else 0.25,
        "real": {"pixels_closer": first["pixels_real"], "features_closer": first["features_real"],
                 "pixels_ratio": 1.0, "features_ratio": 1.0,
                 **{key: value for key, value in real.items() if key not in ("features", "inception")}},
        "history": {str(seed): fit.history for seed, fit in fits.items()},
        "judged": {str(seed): [{part: kept[part] for part in ("train", "test")} for kept in fit.kept]
                   for seed, fit in fits.items()}}
    written = report.write_study(
        bench.folder, "A generative adversarial network, watched",
        f"DCGAN at {settings.side} px, {settings.epochs} epochs on {len(train):,} images", sections, pictures, results,
        began)
    print(*(f"seed {seed}: {found['text']}" for seed, found in collapse.items()), written, sep="\n")
    return 0
