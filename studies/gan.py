"""Study 4: a generative adversarial network (GAN) [1] on paintings, measured while it trains.

Described: noise of 100 numbers through linear layers 100-256-512-(3 x 64 x 64), ReLU between, tanh at the end; against
them strided convolutions with LeakyReLU and one sigmoid output. Binary cross-entropy, weights from normal(0, 0.02),
Adam 2e-4 with betas (0.5, 0.999) for both, batches of 64, a step of the discriminator and one of the generator in
turn, 100 epochs. --variant dcgan: a generator of transposed convolutions, and batch normalisation in both networks [2].

[1] Goodfellow et al. 2014, arXiv:1406.2661    [2] Radford et al. 2016, arXiv:1511.06434
"""
import dataclasses
import itertools

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from studies import figures, metrics, report
from studies.training import StudyModule, adam, decode_prior, mlp


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour images of 64 x 64 px, in [-1, 1] inside the networks."""
    side: int = 64
    latent: int = 100           # dimension of the noise
    hidden: tuple = (256, 512)  # of the generator's linear layers
    convolutional: bool = False  # generator of transposed convolutions, batch norm in both networks
    width: int = 64             # channels of the convolutions at half the side; they double as it halves, down to 4 px
    slope: float = 0.2          # of the LeakyReLU
    init_std: float = 0.02
    lr: float = 2e-4
    betas: tuple = (0.5, 0.999)
    batch_size: int = 64
    epochs: int = 100
    seed: int = 0
    most_train: int = 60_000
    most_test: int = 2000       # as many samples are measured
    measure_every: int = 5      # epochs
    feature_steps: int = 1500   # batches that the network behind the FID is trained for


VARIANTS = {"dcgan": {"convolutional": True}}
QUICK = {"side": 32, "width": 32, "epochs": 20, "most_train": 1500, "most_test": 400, "feature_steps": 300}


def generator(settings):
    """Noise (B, 100) -> images (B, 3, S, S) in [-1, 1]: 100-256-512-(3 x S x S), or if convolutional [2]
    100 -> 512 x 4 x 4 -> 256 x 8 x 8 -> 128 x 16 x 16 -> 64 x 32 x 32 -> 3 x S x S."""
    side, width = settings.side, settings.width * settings.side // 8
    if not settings.convolutional:
        layers = mlp(settings.latent, *settings.hidden, 3 * side ** 2)
        return nn.Sequential(*layers, nn.Tanh(), nn.Unflatten(1, (3, side, side)))
    layers = [nn.Linear(settings.latent, width * 16, bias=False), nn.Unflatten(1, (width, 4, 4)), nn.BatchNorm2d(width)]
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


class GAN(StudyModule):
    """Generator G and discriminator D, which minimise -log D(G(z)) and -log D(x) - log(1 - D(G(z))) [1]."""
    strategy = "ddp_find_unused_parameters_true"  # each step uses some of the parameters

    def __init__(self, settings):
        super().__init__()
        settings = Settings(**settings) if isinstance(settings, dict) else settings
        self.save_hyperparameters({"settings": dataclasses.asdict(settings)})
        self.settings, self.latent, self.automatic_optimization = settings, settings.latent, False
        self.generator, self.discriminator = generator(settings), discriminator(settings)
        for part in self.modules():
            if getattr(part, "weight", None) is not None:
                nn.init.normal_(part.weight, float(isinstance(part, nn.BatchNorm2d)), settings.init_std)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(part.bias)
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def training_step(self, batch, index):
        x, (generator_step, discriminator_step) = 2 * batch[0] - 1, self.optimizers()
        real, fake, entropy = x.new_ones(len(x), 1), x.new_zeros(len(x), 1), nn.BCEWithLogitsLoss()
        drawn = self.generator(torch.randn(len(x), self.latent, device=self.device))
        d_loss = entropy(self.discriminator(x), real) + entropy(self.discriminator(drawn.detach()), fake)
        self._step(discriminator_step, d_loss)
        self.toggle_optimizer(generator_step)  # the discriminator's gradients are not needed
        g_loss = entropy(self.discriminator(drawn), real)
        self._step(generator_step, g_loss)
        self.untoggle_optimizer(generator_step)
        self.log_losses("train", {"discriminator": d_loss, "generator": g_loss}, len(x))

    def _step(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return [adam(part.parameters(), lr=self.settings.lr, betas=self.settings.betas)
                for part in (self.generator, self.discriminator)]

    def decode(self, z):
        """Noise (B, 100) -> images (B, 3, S, S) in [0, 1]."""
        return (self.generator(z) + 1) / 2

    def samples(self, n, seed):
        """n images uint8 (n, 3, S, S) from z ~ N(0, I)."""
        return decode_prior(self.decode, self.latent, n, seed).mul(255).round().byte()


TITLE = "A generative adversarial network, measured while it trains"
SUBTITLE = "{epochs} epochs on {train:,} images of {source[0]}"
EXAMPLE = "python -m studies gan paintings/ --out gan --variant dcgan"
CHANNELS, NEEDS_CLASSES, TRAINS_ON_BOTH = 3, False, False
FRAMES, STEADY, CONTROL = 16, 0.1, 0.5  # samples in the GIF, deviation of a steady loss, share of the real value
MEASURES = {"fid": "FID ↓", "precision": "precision ↑", "recall": "recall ↑", "diversity": "mean pairwise L2",
            "sharpness": "variance of the Laplacian", "chroma": "mean chroma"}


class Reference:
    """What samples are compared with: held-out images, and what as many training images and negative controls get in
    their place. FID, precision and recall are None unless the features tell the controls from images (`reliable`)."""

    def __init__(self, study, extract):
        seed, n = study.args.seed, min(len(study.train), len(study.test))
        self.held, self.trained = (images.subsample(n, seed).pixels for images in (study.test, study.train))
        self.extract, self.features, self.reliable = extract, extract(self.held), True
        order = torch.randperm(self.held[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)  # of the untrained generators
        self.controls = {name: self.measure(images) for name, images in {
            "training images": self.trained, "held-out images, blurred": gaussian_blur(self.held, 9, 2.0),
            "held-out images, pixels shuffled": self.held.flatten(2)[:, :, order].view_as(self.held),
            **{f"untrained generator, {variant}": GAN(settings).samples(n, seed)
               for variant, settings in study.variants.items()}}.items()}
        real, *others = (found["precision"] for found in self.controls.values())
        self.reliable = max(others) < CONTROL * real

    def measure(self, images):
        """{each of MEASURES: number} of images uint8 (n, 3, S, S)."""
        x, y, real = images / 255, self.extract(images), self.features
        compared = (metrics.fid(real, y), *metrics.precision_recall(real, y)) if self.reliable else (None, None, None)
        chroma = float((x.amax(1) - x.amin(1)).mean())  # of the pixels' channels the largest less the smallest
        return dict(zip(MEASURES, (*compared, metrics.mean_pairwise_l2(x), metrics.sharpness(x), chroma)))


class SampleCallback(Callback):
    """Keeps `frames`, samples uint8 (16, 3, S, S) of the same noise after each epoch, and `measured`, their numbers."""

    def __init__(self, reference, settings, seed):
        self.reference, self.settings, self.seed, self.frames, self.measured = reference, settings, seed, [], []

    def on_train_epoch_end(self, trainer, module):
        if trainer.is_global_zero:
            epoch = trainer.current_epoch + 1
            due = epoch % self.settings.measure_every == 0 or epoch == trainer.max_epochs
            n = len(self.reference.held)
            drawn = module.eval().samples(max(n, FRAMES) if due else FRAMES, self.seed)
            self.frames.append(drawn[:FRAMES].clone())
            if due:
                self.measured.append({"epoch": epoch, **self.reference.measure(drawn[:n])})
            module.train()

    def state_dict(self):
        return {"frames": self.frames, "measured": self.measured}

    def load_state_dict(self, state):
        self.frames, self.measured = state["frames"], state["measured"]


def train(study):
    """{"features": (function, facts), "reference": Reference or None, "models": {(variant, seed): (GAN, its
    SampleCallback)}}."""
    features = metrics.train_feature_extractor(study)
    reference, models = Reference(study, features[0]) if study.run.is_global_zero else None, {}
    for (variant, settings), seed in itertools.product(study.variants.items(), study.seeds):
        torch.manual_seed(seed)
        callback = SampleCallback(reference, settings, seed)
        models[variant, seed] = study.run.fit(
            f"gan_{variant}_seed{seed}", GAN(settings), study.train, epochs=settings.epochs, seed=seed,
            batch_size=settings.batch_size, callbacks=[callback]), callback
    return {"features": features, "reference": reference, "models": models}


def measure_model(model, callback):
    """Numbers of a trained model: what was measured last, the first FID, and its losses in fifths of the epochs."""
    g, d = (np.array(model.curve(f"train_{name}")) for name in ("generator", "discriminator"))
    n = max(1, len(g) // 5)
    g_varies, d_varies = (loss[-n:].std() / loss[-n:].mean() if n > 1 else None for loss in (g, d))
    return {**callback.measured[-1], "first_fid": callback.measured[0]["fid"], "seconds": model.seconds,
            "g_first": g[:n].mean(), "g_last": g[-n:].mean(), "g_varies": g_varies, "d_last": d[-n:].mean(),
            "d_varies": d_varies}


def measure(study, trained):
    """{"numbers": {variant: {measure: {"mean", "sd", "values"}}}, ...} for results.json."""
    reference, models = trained["reference"], trained["models"]
    return {
        "numbers": {variant: metrics.summarise([measure_model(*models[variant, seed]) for seed in study.seeds])
                    for variant in study.variants},
        "measured": {f"{variant} {seed}": callback.measured for (variant, seed), (_, callback) in models.items()},
        "history": {f"{variant} {seed}": model.history for (variant, seed), (model, _) in models.items()},
        "features": trained["features"][1], "features_reliable": reference.reliable, "controls": reference.controls,
        "real": {**reference.controls["training images"], "images": len(reference.held)}}


def conclusions(study, trained, results):
    """Five Claims of the document on each variant."""
    claims, real, confirmed = [], results["real"], metrics.agrees_with_trend
    for variant, found in results["numbers"].items():
        own = {name: report.number(value, 3) for name, value in found.items()}
        both = {name: f"{own[name]} (training images {report.number(real[name], 3)})" for name in MEASURES}
        near = {name: (CONTROL * real[name], found[name]["mean"]) for name in MEASURES}
        found_by_figure = [
            ("losses", "Generator loss decreases as it fools discriminator",
             f"Generator loss {own['g_first']} in the first fifth of epochs, {own['g_last']} in the last",
             confirmed("falls", (found["g_first"], found["g_last"]))),
            ("losses", "Discriminator loss stabilizes", f"Discriminator loss {own['d_last']} in the last fifth of "
             f"epochs, relative standard deviation {own['d_varies']}",
             confirmed("falls", (STEADY, found["d_varies"]["mean"]))),
            ("samples", "Training is unstable but produces diverse outputs", "Relative standard deviation of "
             f"generator loss {own['g_varies']}; mean pairwise L2 {both['diversity']}, recall {both['recall']}",
             confirmed("rises", (STEADY, found["g_varies"]["mean"]), near["diversity"], near["recall"])),
            ("samples", "colorful, noisy patterns similar to the dataset", f"Samples' mean chroma {both['chroma']}, "
             f"variance of the Laplacian {both['sharpness']}, precision {both['precision']}",
             confirmed("rises", *(near[name] for name in ("chroma", "sharpness", "precision")))),
            ("measured_fid", "Quality improves with more epochs",
             f"FID {own['first_fid']} when first measured, {own['fid']} last",
             None if results["features"]["weak"] else confirmed("falls", (found["first_fid"], found["fid"])))]
        claims += [report.Claim(published, f"{report.of_variant(study, variant)}{text}.", agrees, figure)
                   for figure, published, text, agrees in found_by_figure]
    return claims


def sections(study, trained, results, picture):
    """The report's sections; the figures are of the first seed's models."""
    return [
        report.Section("Results", [
            *["Quick: too short to judge the pictures."] * results["quick"], report.features_text(results["features"]),
            "FID, precision and recall (Kynkäänniemi et al. 2019) are "
            f"{'not ' * (not results['features_reliable'])}reported: they need controls whose precisions are below "
            f"{CONTROL} times that of training images."],
            [report.comparison_table(f"{results['real']['images']:,} samples, last epoch, against as many held-out "
                                     f"images; {report.seeds_text(results)}. ↓: lower is better, ↑: higher.", {
                **results["numbers"], "training images": results["real"]}, {**MEASURES, "seconds": "training, s"}),
             report.comparison_table("In the place of samples.", results["controls"], MEASURES)]),
        report.Section("Figures", (), (), pictures(study, trained, results, picture))]


def pictures(study, trained, results, picture):
    """The pictures of the first seed's models."""
    seed, shown, real = study.args.seed, study.test.subsample(64, study.args.seed), results["real"]
    models = {variant: trained["models"][variant, seed] for variant in study.variants}
    drawn = {variant: model.samples(len(shown), seed) for variant, (model, _) in models.items()}
    near = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(study.train.floats().flatten(1))
    return [
        picture("samples", figures.grid_figure({"held-out images": shown.floats(), **{
            f"samples, {variant}": images / 255 for variant, images in drawn.items()}}, 16, per_row=1),
            "The first samples, not selected, and held-out images drawn at random."),
        picture("evolution", (figures.grid_figure({
            variant: callback.frames[i - 1] / 255 for variant, (_, callback) in models.items()}, 4, title=f"epoch {i}")
            for i in np.unique(np.geomspace(1, study.settings.epochs, 40).round().astype(int))),  # most change is early
            f"{FRAMES} samples of the same noise, not selected, after epochs at growing distances."),
        picture("losses", figures.curves_figure({
            variant: {name: model.curve(f"train_{name}") for name in ("generator", "discriminator")}
            for variant, (model, _) in models.items()}, "nats",
            reference=dict.fromkeys(models, {"generator, D = 1/2": np.log(2), "discriminator, D = 1/2": np.log(4)})),
            "Mean losses of each epoch; D = 1/2: it does not distinguish them."),
        *(picture(f"measured_{names[0]}", figures.curves_figure(
            {MEASURES[name]: {variant: tuple(zip(*((row["epoch"], row[name]) for row in callback.measured)))
                              for variant, (_, callback) in models.items()} for name in names},
            reference={MEASURES[name]: {"training images": real[name]} for name in names}, log=(MEASURES["fid"],)),
            f"{', '.join(names)} of the same noise's samples, against epochs.")
          for names in (list(MEASURES)[:3], list(MEASURES)[3:]) if results["features_reliable"] or "fid" not in names),
        *(picture(f"neighbours_{variant}", figures.rows_figure({"sample": images[:8] / 255, **{
            f"training {i}": study.train.pixels[nearest] / 255 for i, nearest in enumerate(near.kneighbors(
                images[:8].flatten(1) / 255, return_distance=False).T, 1)}}), f"{variant}: the first eight samples and "
            "the three training images nearest to each, by pixels.") for variant, images in drawn.items())]
