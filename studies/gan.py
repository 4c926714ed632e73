"""Study 4: a generative adversarial network (GAN) [1] on paintings, measured while it trains.

Described: noise of 100 numbers through linear layers 100-256-512-(3 x 64 x 64), ReLU between, tanh at the end; against
them strided convolutions with LeakyReLU and one sigmoid output. Binary cross-entropy, weights from normal(0, 0.02),
Adam 2e-4 with betas (0.5, 0.999) for both, batches of 64, a step of the discriminator and one of the generator in
turn, 100 epochs. --variant dcgan: a generator of transposed convolutions, and batch normalisation in both networks [2].

[1] Goodfellow et al. 2014, arXiv:1406.2661    [3] Kynkäänniemi et al. 2019, arXiv:1904.06991
[2] Radford et al. 2016, arXiv:1511.06434
"""
import dataclasses
from typing import Tuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchvision.transforms.functional import gaussian_blur

import bird
from studies import figures, metrics, report
from studies.report import Section, Table
from studies.training import StudyModule, mapped

TITLE = "A generative adversarial network on paintings"
LEAD = "{epochs} epochs on {train:,} images"
EXAMPLE = "python -m studies gan paintings/ --out gan --variant dcgan"
CHANNELS, LABELLED = 3, False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour images of 64 x 64 px, in [-1, 1] inside the networks."""
    side: int = 64
    noise: int = 100
    hidden: Tuple[int, ...] = (256, 512)  # of the generator's linear layers
    convolutional: bool = False  # generator of transposed convolutions, batch norm in both networks
    width: int = 64             # channels of the convolutions at half the side; they double as it halves, down to 4 px
    slope: float = 0.2          # of the LeakyReLU
    init_std: float = 0.02
    lr: float = 2e-4
    betas: Tuple[float, float] = (0.5, 0.999)
    batch_size: int = 64
    epochs: int = 100
    seed: int = 0
    # measurement
    test_share: float = 0.2     # held out where the data has no test files
    most_train: int = 60_000
    most_test: int = 2000       # as many samples are measured
    measure_every: int = 5      # epochs
    feature_steps: int = 1500   # batches that the network behind the FID is trained for


VARIANTS = {"dcgan": {"convolutional": True}}
QUICK = {"side": 32, "width": 32, "epochs": 20, "most_train": 1500, "most_test": 400, "feature_steps": 300}
FRAMES, MOST_FRAMES = 16, 40  # samples in a frame of the GIF, frames
MEASURES = {"fid": "FID", "precision": "precision", "recall": "recall", "diversity": "mean pairwise L2",
            "sharpness": "variance of the Laplacian"}
CONTROL, LITTLE_DIVERSITY, LITTLE_RECALL = 0.5, 0.5, 0.1
RULE = ("FID, precision and recall (Kynkäänniemi et al. 2019) are reported where held-out images with blur or with "
        f"shuffled pixels and samples of untrained generators have precisions below {CONTROL} times that of training "
        "images. ")
CRITERION = (f"Signs of collapse: diversity below {LITTLE_DIVERSITY} times that of held-out images, or recall below "
             f"{LITTLE_RECALL} times that of training images. They count after the first measured epoch without any.")


# --------------------------------------------------------------------------------------------------------------- model

def linear_generator(settings):
    """Noise (B, 100) -> images (B, 3, S, S) in [-1, 1]: 100-256-512-(3 x S x S)."""
    layers, width = [], settings.noise
    for following in settings.hidden:
        layers += [nn.Linear(width, following), nn.ReLU()]
        width = following
    shape = (3, settings.side, settings.side)
    return nn.Sequential(*layers, nn.Linear(width, 3 * settings.side ** 2), nn.Tanh(), nn.Unflatten(1, shape))


def convolutional_generator(settings):
    """Noise (B, 100) -> 512 x 4 x 4 -> 256 x 8 x 8 -> 128 x 16 x 16 -> 64 x 32 x 32 -> images in [-1, 1] [2]."""
    width = settings.width * settings.side // 8
    layers = [nn.Linear(settings.noise, width * 16, bias=False), nn.Unflatten(1, (width, 4, 4)), nn.BatchNorm2d(width)]
    while width > settings.width:
        width //= 2
        layers += [nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())


def discriminator(settings):
    """Images (B, 3, S, S) in [-1, 1] -> logits (B, 1) of being real: 64 x 32 x 32 -> ... -> 512 x 4 x 4 -> 1. Its batch
    norm goes by the batch at hand always: running averages would mix real images and samples."""
    width, norm = settings.width, settings.convolutional
    layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(settings.slope)]
    while width < settings.width * settings.side // 8:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=not norm),
                   *[nn.BatchNorm2d(2 * width, track_running_stats=False)] * norm, nn.LeakyReLU(settings.slope)]
        width *= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 1))


def discriminator_loss(real, fake):
    """-log D(x) - log(1 - D(G(z))) in nats, the mean over logits (B, 1) of real images and of samples [1, eq. 1]."""
    return (F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))


def generator_loss(fake):
    """-log D(G(z)) in nats, the mean over logits (B, 1) of samples [1, section 3]."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


class GAN(StudyModule):
    """Generator G and discriminator D."""

    def __init__(self, settings):
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters({key: value for key, value in vars(settings).items() if key != "epochs"})
        self.generator = (convolutional_generator if settings.convolutional else linear_generator)(settings)
        self.discriminator = discriminator(settings)
        for part in self.modules():
            if getattr(part, "weight", None) is not None:
                nn.init.normal_(part.weight, float(isinstance(part, nn.BatchNorm2d)), settings.init_std)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(part.bias)
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def generate(self, z):
        """Noise (B, 100) -> images (B, 3, S, S) in [0, 1]."""
        return (self.generator(z) + 1) / 2

    def realness(self, x):
        """Images (B, 3, S, S) in [0, 1] -> D(x), the probability (B, 1) of being real."""
        return self.discriminator(2 * x - 1).sigmoid()

    def training_step(self, batch, index):
        x, (generator_step, discriminator_step) = 2 * batch[0] - 1, self.optimizers()
        fake = self.generator(torch.randn(len(x), self.hparams.noise, device=self.device))
        real_logits, fake_logits = self.discriminator(x), self.discriminator(fake.detach())
        losses = {"discriminator": discriminator_loss(real_logits, fake_logits)}
        self._step(discriminator_step, losses["discriminator"])
        self.toggle_optimizer(generator_step)  # the discriminator's gradients are not needed
        losses["generator"] = generator_loss(self.discriminator(fake))
        self._step(generator_step, losses["generator"])
        self.untoggle_optimizer(generator_step)
        self.log_losses("train", losses, len(x))

    def _step(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return [bird.in_one_pass(torch.optim.Adam, list(part.parameters()), lr=self.hparams.lr,
                                 betas=self.hparams.betas) for part in (self.generator, self.discriminator)]


# --------------------------------------------------------------------------------------------------------- measurement

def samples(model, n, seed):
    """n images uint8 (n, 3, S, S) from z ~ N(0, I)."""
    noise = torch.randn(n, model.hparams.noise, generator=torch.Generator().manual_seed(seed))
    return mapped(model.generate, noise, 250).mul(255).round().byte()


class Reference:
    """What samples are compared with: as many held-out as training images, and what the latter and negative controls
    get in the place of samples. Where RULE is not met, `tells` is False, and FID, precision and recall are None."""

    def __init__(self, study, extract):
        seed, n = study.args.seed, min(len(study.train), len(study.test))
        self.extract, self.tells = extract, True
        self.held, self.trained = (images.at_most(n, seed).pixels for images in (study.test, study.train))
        self.features = extract(self.held)
        order = torch.randperm(self.held[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
        self.controls = {name: self.measure(images) for name, images in {
            "training images": self.trained, "held-out images, blurred": gaussian_blur(self.held, 9, 2.0),
            "held-out images, pixels shuffled": self.held.flatten(2)[:, :, order].view_as(self.held),
            **{f"untrained generator, {variant}": samples(GAN(settings), n, seed)
               for variant, settings in study.variants.items()}}.items()}
        real, *others = (found["precision"] for found in self.controls.values())
        self.tells = max(others) < CONTROL * real

    def measure(self, images):
        """{"fid", "precision", "recall", "diversity", "sharpness"} of images uint8 (n, 3, S, S)."""
        found, compared = self.extract(images), (None, None, None)
        if self.tells:
            compared = (metrics.fid(self.features, found), *metrics.precision_recall(self.features, found))
        return dict(zip(MEASURES, (*compared, metrics.mean_pairwise_l2(images / 255), metrics.sharpness(images / 255))))


class Watch(Callback):
    """After each epoch keeps {"frame": uint8 (16, 3, S, S) of the same noise, "realness": mean D(x) of training and of
    held-out images, "measured": numbers of samples, every `measure_every` epochs, else None}."""

    def __init__(self, reference, settings, seed):
        self.reference, self.settings, self.seed, self.epochs = reference, settings, seed, []

    def on_train_epoch_end(self, trainer, module):
        if not trainer.is_global_zero:
            return
        module.eval()
        epoch, batch_size = trainer.current_epoch + 1, self.settings.batch_size
        measured = epoch % self.settings.measure_every == 0
        drawn = samples(module, len(self.reference.held) if measured else FRAMES, self.seed)
        self.epochs.append({
            "frame": drawn[:FRAMES].clone(),
            "realness": [float(mapped(module.realness, pixels[:4 * batch_size], batch_size).mean())
                         for pixels in (self.reference.trained, self.reference.held)],
            "measured": {"epoch": epoch, **self.reference.measure(drawn)} if measured else None})
        module.train()

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def nearest(x, y, k=1):
    """(Euclidean distances (N, k), indices (N, k)) of the k images or features y (M, ...) nearest to each of x
    (N, ...); those of uint8 as [0, 1]."""
    x, y = (part.flatten(1).float().numpy() / (255 if part.dtype == torch.uint8 else 1) for part in (x, y))
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(y).kneighbors(x)


def copying(drawn, held, trained, share=0.01, k=3):
    """How near samples (N, ...) are to their nearest training images. The nearest `share` of one half of the held-out
    images (M, ...) gives a limit; "copies" is the share of samples within it, "real" that of the other half, each with
    its 95 % interval; "ratio" is that of the median distances. Returns ({"ratio", "copies", "copies_interval", "real",
    "real_interval"}, indices (N, k) of the nearest training images)."""
    (near, index), usual = nearest(drawn, trained, k), nearest(held, trained)[0][:, 0]
    limit, found = np.quantile(usual[::2], share), {"ratio": float(np.median(near[:, 0]) / np.median(usual))}
    for key, distances in (("copies", near[:, 0]), ("real", usual[1::2])):
        within = int((distances <= limit).sum())
        found[key] = within / len(distances)
        found[f"{key}_interval"] = metrics.proportion_interval(within, len(distances))
    return found, index


def collapse(rows, real):
    """What CRITERION says of measured epochs: {"signs": epochs, "since": the one from which on all have signs, or None,
    "text"}. `real` has the diversity of held-out and the recall of training images."""
    signs = [row["epoch"] for row in rows if row["diversity"] < LITTLE_DIVERSITY * real["diversity"]
             or row["recall"] is not None and row["recall"] < LITTLE_RECALL * real["recall"]]
    sound = [row["epoch"] for row in rows if row["epoch"] not in signs]
    if not sound:
        return {"signs": signs, "since": None, "text": "at every measured epoch: collapsed, or not learnt yet"}
    signs = [epoch for epoch in signs if epoch > sound[0]]
    since = next((epoch for epoch in signs if epoch > sound[-1]), None)
    return {"signs": signs, "since": since, "text": f"from epoch {since} to the last" if since else
            f"none from epoch {sound[0]} on" if not signs else f"none in the end; at {len(signs)} epochs before"}


# --------------------------------------------------------------------------------------------------- train and measure

def train(study):
    """{"features": (function, facts), "reference": Reference, None but in the first process,
    "models": {(variant, seed): (GAN, what Watch has kept)}}."""
    features = metrics.train_feature_extractor(study.run, study.train, study.test, study.settings.feature_steps,
                                               study.args.seed)
    reference, models = Reference(study, features[0]) if study.run.leads else None, {}
    for variant, settings in study.variants.items():
        for seed in study.seeds:
            torch.manual_seed(seed)
            watch = Watch(reference, settings, seed)
            models[variant, seed] = study.run.fit(
                f"gan_{variant}_seed{seed}", GAN(settings), study.train, epochs=settings.epochs, seed=seed,
                batch_size=settings.batch_size, callbacks=[watch],
                strategy="ddp_find_unused_parameters_true"), watch.epochs  # each step uses some of the parameters
    return {"features": features, "reference": reference, "models": models}


def measure_model(model, kept, study, reference, inception, seed):
    """(numbers of one training, {space: numbers of `copying`}, {space: indices (N, 3) of the nearest images})."""
    drawn, copies, index = samples(model, len(reference.held), seed), {}, {}
    for space, place in (("pixels", lambda images: images), ("features", reference.extract))[:1 + reference.tells]:
        copies[space], index[space] = copying(*map(place, (drawn, study.test.pixels, study.train.pixels)))
    found = {**reference.measure(drawn), **{f"{part}_{name}": model.curve(f"train_{name}")[i] for part, i in (
        ("first", 0), ("last", -1)) for name in ("generator", "discriminator")},
        "train_realness": kept[-1]["realness"][0], "test_realness": kept[-1]["realness"][1], "seconds": model.seconds}
    if inception:
        found["inception_fid"] = metrics.fid(*map(inception, (reference.held, drawn)))
    return found, copies, index


def measure(study, trained):
    """{"numbers": {variant: {measure: {"mean", "sd", "values"}}}, ...} for results.json."""
    reference, inception, held, found = trained["reference"], None, trained["reference"].held, {}
    real = {**reference.controls["training images"], "images": len(held),
            "diversity": metrics.mean_pairwise_l2(held / 255), "sharpness": metrics.sharpness(held / 255)}
    if study.args.inception:
        inception = metrics.inception_features(study.args.inception, study.run.device)
        real["inception_fid"] = metrics.fid(*map(inception, (held, reference.trained)))
    for (variant, seed), (model, kept) in trained["models"].items():
        numbers, copies, nearest_images = measure_model(model, kept, study, reference, inception, seed)
        rows = [each["measured"] for each in kept if each["measured"]]
        if len(kept) % study.settings.measure_every:
            rows.append({"epoch": len(kept), **{name: numbers[name] for name in MEASURES}})
        found[variant, seed] = {
            "numbers": numbers, "copying": copies, "collapse": collapse(rows, real), "measured": rows,
            "realness": [each["realness"] for each in kept], "history": model.history}
        trained.setdefault("nearest", {}).setdefault(variant, nearest_images)
    return {"numbers": {variant: metrics.summarise([found[variant, seed].pop("numbers") for seed in study.seeds])
                        for variant in study.variants},
            **{name: {variant: {str(seed): found[variant, seed][name] for seed in study.seeds}
                      for variant in study.variants} for name in next(iter(found.values()))},
            "features": trained["features"][1], "features_tell": reference.tells, "controls": reference.controls,
            "real": real}


def draw(study, trained, results, album):
    """Figures of the first seed's models."""
    seed, real, train = study.args.seed, results["real"], study.train
    models = {variant: trained["models"][variant, seed] for variant in study.variants}
    rows = {variant: results["measured"][variant][str(seed)] for variant in models}
    album.add("losses", figures.curves_figure({
        variant: {name: model.curve(f"train_{name}") for name in ("generator", "discriminator")}
        for variant, (model, _) in models.items()}, "nats"), "Losses of generator and discriminator against epochs.",
        "Means over each epoch. D = 1/2 gives log 2 = 0.693 for the generator, 2 log 2 = 1.386 for the discriminator.")
    album.add("realness", figures.curves_figure({
        variant: {f"{part} images": [each["realness"][i] for each in kept]
                  for i, part in enumerate(("training", "held-out"))} for variant, (_, kept) in models.items()},
        "mean D(x)"), "Mean D(x) of training and of held-out images against epochs.", "After each epoch.")
    epochs = [row["epoch"] for row in rows["described"]]
    for beside, names in (("training images", list(MEASURES)[:3]), ("held-out images", list(MEASURES)[3:])):
        if rows["described"][0][names[0]] is not None:
            album.add(f"measured_{names[0]}", figures.curves_figure({name: {
                **{variant: (epochs, [row[name] for row in found]) for variant, found in rows.items()},
                beside: (epochs, [real[name]] * len(epochs))} for name in names}, MEASURES),
                f"Curves against epochs: {', '.join(names)} of samples, and of {beside} for comparison.",
                f"{real['images']:,} samples of the same noise at each measured epoch.")
    few = study.test.at_most(64, seed)
    album.add("samples", figures.grid_figure({
        "held-out images": few.floats(), **{f"samples, {variant}": samples(model, len(few), seed) / 255
                                            for variant, (model, _) in models.items()}}, 16, per_row=1),
        f"Grids of {len(few)} images: held-out ones, and samples of each variant.",
        "The first samples, not selected, and held-out images drawn at random.")
    total = len(models["described"][1])
    album.add("evolution", figures.gif_bytes((figures.grid_figure({
        f"{variant}, epoch {i + 1}": kept[i]["frame"] / 255 for variant, (_, kept) in models.items()}, 4)
        for i in np.unique(np.linspace(0, total - 1, MOST_FRAMES).round().astype(int))), study.args.signature),
        f"Animation: {FRAMES} samples of each variant from epoch 1 to {total}.",
        f"{FRAMES} samples of the same noise, not selected, through the training.")
    for variant, found in trained["nearest"].items():
        album.add(f"neighbours_{variant}", figures.rows_figure({
            "sample": samples(models[variant][0], len(few), seed)[:8] / 255,
            **{f"{space} {i + 1}": train.pixels[index[:8, i]] / 255 for space, index in found.items()
               for i in (0, 1, 2)}}),
            "Eight samples in the first row, below each its nearest training images by pixels and by features.",
            f"{variant}: the first eight samples and the three training images nearest to each.")


# --------------------------------------------------------------------------------------------------------------- report

ROWS = (  # title, key
    ("FID ↓", "fid"), ("FID of Inception features ↓", "inception_fid"),
    ("precision: samples among held-out images ↑", "precision"), ("recall: held-out images among samples ↑", "recall"),
    ("mean pairwise L2", "diversity"), ("sharpness, variance of the Laplacian", "sharpness"),
    ("generator's loss, first epoch", "first_generator"), ("  last epoch", "last_generator"),
    ("discriminator's loss, first epoch", "first_discriminator"), ("  last epoch", "last_discriminator"),
    ("mean D(x), training images", "train_realness"), ("  held-out images", "test_realness"),
    ("training, seconds", "seconds"))


def sections(results, album):
    """The report's sections from results.json and the pictures."""
    found, real, controls, n = results["numbers"], results["real"], results["controls"], results["data"]["train"]
    numbers = Table(
        f"{real['images']:,} samples against as many held-out images, last epoch; {report.seeds_text(results)}. Real "
        "images: training images for FID, precision and recall, else held-out ones. ↓: lower is better, ↑: higher.",
        ["measure", *found, "real images"],
        [[title, *(report.number(each[key]) for each in found.values()), report.number(real[key]) if key in real
          else ""] for title, key in ROWS if key in found["described"]])
    highest = max(each["precision"] for name, each in controls.items() if name != "training images")
    copies = [[f"{variant}, {space}", report.percent(each["copies"], each["copies_interval"]),
               report.percent(each["real"], each["real_interval"]), report.number(each["ratio"], 3)]
              for variant, seeds in results["copying"].items() for space, each in next(iter(seeds.values())).items()]
    return [
        Section("Results", [
            *["The quick version is too short to judge the pictures."] * results["quick"],
            report.features_text(results["features"]), RULE + f"Here {highest:.3f} and {real['precision']:.3f}: "
            + "not " * (not results["features_tell"]) + "reported."],
            [numbers, Table("In the place of samples.", ["images", "FID", "precision", "recall"], [
                [name, *(report.number(each[key]) for key in ("fid", "precision", "recall"))]
                for name, each in controls.items()])],
            [picture for name, picture in album.pictures.items() if name.startswith("measured")]),
        Section("Collapse", [CRITERION], [Table("Signs of collapse.", ["variant, seed", "signs"], [
            [f"{variant}, {seed}", each["text"]] for variant, seeds in results["collapse"].items()
            for seed, each in seeds.items()])]),
        Section("Samples", (), (), [album["samples"], album["evolution"]]),
        Section("Training", (), (), [album["losses"], album["realness"]]),
        Section("Is it copying?", [
            "The nearest 1 % of one half of the held-out images give a distance to the training images: shares of "
            "samples and of the other half within it, with 95 % intervals."],
            [Table(f"First seed, {n:,} training images.", ["variant, distance by", "samples", "held-out images",
                                                           "ratio of median distances"], copies)],
            [album[f"neighbours_{variant}"] for variant in found])]
