"""Study 4: a generative adversarial network (GAN) [1] on paintings, measured while it trains.

Described: noise of 100 numbers through linear layers 100-256-512-(3 x 64 x 64), ReLU between, tanh at the end; against
them strided convolutions with LeakyReLU and one sigmoid output. Binary cross-entropy, weights from normal(0, 0.02),
Adam 2e-4 with betas (0.5, 0.999) for both, batches of 64, a step of the discriminator and one of the generator in
turn, 100 epochs. --variant dcgan: a generator of transposed convolutions, and batch normalisation in both networks [2].

[1] Goodfellow et al. 2014, arXiv:1406.2661    [3] Kynkäänniemi et al. 2019, arXiv:1904.06991
[2] Radford et al. 2016, arXiv:1511.06434
"""
import dataclasses
import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from studies import figures, metrics, report
from studies.training import StudyModule, adam, decoded_noise, mlp

TITLE = "A generative adversarial network on paintings"
LEAD = "{epochs} epochs on {train:,} images"
EXAMPLE = "python -m studies gan paintings/ --out gan --variant dcgan"
CHANNELS, LABELLED = 3, False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour images of 64 x 64 px, in [-1, 1] inside the networks."""
    side: int = 64
    noise: int = 100
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
FRAMES = 16  # samples in a frame of the GIF
MEASURES = {"fid": "FID ↓", "precision": "precision ↑", "recall": "recall ↑", "diversity": "mean pairwise L2",
            "sharpness": "variance of the Laplacian"}
CONTROL = 0.5
RULE = ("FID, precision and recall (Kynkäänniemi et al. 2019) are reported where held-out images with blur or with "
        f"shuffled pixels and samples of untrained generators have precisions below {CONTROL} times that of training "
        "images. ")


def linear_generator(settings):
    """Noise (B, 100) -> images (B, 3, S, S) in [-1, 1]: 100-256-512-(3 x S x S)."""
    side = settings.side
    return nn.Sequential(*mlp(settings.noise, *settings.hidden, 3 * side ** 2), nn.Tanh(),
                         nn.Unflatten(1, (3, side, side)))


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


class GAN(StudyModule):
    """Generator G and discriminator D, which minimise -log D(G(z)) and -log D(x) - log(1 - D(G(z))) [1]."""
    strategy = "ddp_find_unused_parameters_true"  # each step uses some of the parameters

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

    def training_step(self, batch, index):
        x, (generator_step, discriminator_step) = 2 * batch[0] - 1, self.optimizers()
        real, fake, entropy = x.new_ones(len(x), 1), x.new_zeros(len(x), 1), F.binary_cross_entropy_with_logits
        drawn = self.generator(torch.randn(len(x), self.hparams.noise, device=self.device))
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
        return [adam(part.parameters(), lr=self.hparams.lr, betas=self.hparams.betas)
                for part in (self.generator, self.discriminator)]


def samples(model, n, seed):
    """n images uint8 (n, 3, S, S) from z ~ N(0, I)."""
    return decoded_noise(model.generate, model.hparams.noise, n, seed).mul(255).round().byte()


class Reference:
    """What samples are compared with: held-out images, and what as many training images and negative controls get in
    the place of samples. Where RULE is not met, `tells` is False, and FID, precision and recall are None."""

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
    """Keeps {"frame": uint8 (16, 3, S, S) of the same noise, "measured": numbers of samples, or None} of each epoch."""

    def __init__(self, reference, settings, seed):
        self.reference, self.settings, self.seed, self.epochs = reference, settings, seed, []

    def on_train_epoch_end(self, trainer, module):
        if not trainer.is_global_zero:
            return
        module.eval()
        epoch = trainer.current_epoch + 1
        measured = epoch % self.settings.measure_every == 0 or epoch == trainer.max_epochs
        drawn = samples(module, len(self.reference.held) if measured else FRAMES, self.seed)
        self.epochs.append({"frame": drawn[:FRAMES].clone(), "measured": {
            "epoch": epoch, **self.reference.measure(drawn)} if measured else None})
        module.train()

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def train(study):
    """{"features": (function, facts), "reference": Reference, None but in the first process,
    "models": {(variant, seed): (GAN, what Watch has kept)}}."""
    features = metrics.train_feature_extractor(study)
    reference, models = Reference(study, features[0]) if study.run.leads else None, {}
    for (variant, settings), seed in itertools.product(study.variants.items(), study.seeds):
        torch.manual_seed(seed)
        watch = Watch(reference, settings, seed)
        models[variant, seed] = study.run.fit(
            f"gan_{variant}_seed{seed}", GAN(settings), study.train, epochs=settings.epochs, seed=seed,
            batch_size=settings.batch_size, callbacks=[watch]), watch.epochs
    return {"features": features, "reference": reference, "models": models}


def measure(study, trained):
    """{"numbers": {variant: {measure: {"mean", "sd", "values"}}}, ...} for results.json."""
    reference, models, held = trained["reference"], trained["models"], trained["reference"].held
    rows = {key: [each["measured"] for each in kept if each["measured"]] for key, (_, kept) in models.items()}
    return {
        "numbers": {variant: metrics.summarise([
            {**{name: rows[variant, seed][-1][name] for name in MEASURES}, "seconds": models[variant, seed][0].seconds}
            for seed in study.seeds]) for variant in study.variants},
        "measured": {variant: {str(seed): rows[variant, seed] for seed in study.seeds} for variant in study.variants},
        "history": {variant: {str(seed): models[variant, seed][0].history for seed in study.seeds}
                    for variant in study.variants},
        "features": trained["features"][1], "features_tell": reference.tells, "controls": reference.controls,
        "real": {**reference.controls["training images"], "images": len(held),
                 "diversity": metrics.mean_pairwise_l2(held / 255), "sharpness": metrics.sharpness(held / 255)}}


def sections(study, trained, results, picture):
    """The report's sections; the figures are of the first seed's models."""
    found, real, controls = results["numbers"], results["real"], results["controls"]
    highest = max(each["precision"] for name, each in controls.items() if name != "training images")
    return [
        report.Section("Results", [
            *["The quick version is too short to judge the pictures."] * results["quick"],
            report.features_text(results["features"]), RULE + f"Here {highest:.3f} and {real['precision']:.3f}: "
            + "not " * (not results["features_tell"]) + "reported."],
            [report.compared(
                f"{real['images']:,} samples against as many held-out images, last epoch; {report.seeds_text(results)}."
                " Real images: training images for FID, precision and recall, else held-out ones. ↓: lower is better, "
                "↑: higher. A collapse shows in a mean pairwise L2 or recall far below that of real images.",
                {**found, "real images": real}, {**MEASURES, "seconds": "training, seconds"}),
             report.compared("In the place of samples.", controls, dict(list(MEASURES.items())[:3]))]),
        report.Section("Figures", (), (), pictures(study, trained, results, picture))]


def pictures(study, trained, results, picture):
    """The pictures of the first seed's models."""
    seed, real, few = study.args.seed, results["real"], study.test.at_most(64, study.args.seed)
    models = {variant: trained["models"][variant, seed] for variant in study.variants}
    rows = {variant: results["measured"][variant][str(seed)] for variant in models}
    drawn = {variant: samples(model, len(few), seed) for variant, (model, _) in models.items()}
    made = [
        picture("samples", figures.grid_figure({"held-out images": few.floats(), **{
            f"samples, {variant}": images / 255 for variant, images in drawn.items()}}, 16, per_row=1),
            "The first samples, not selected, and held-out images drawn at random."),
        picture("evolution", (figures.grid_figure({
            f"{variant}, epoch {i + 1}": kept[i]["frame"] / 255 for variant, (_, kept) in models.items()}, 4)
            for i in figures.spread(range(study.settings.epochs))),
            f"{FRAMES} samples of the same noise, not selected, through the training."),
        picture("losses", figures.curves_figure({
            variant: {name: model.curve(f"train_{name}") for name in ("generator", "discriminator")}
            for variant, (model, _) in models.items()}, "nats"), "Losses, means over each epoch. D = 1/2 gives log 2 = "
            "0.693 for the generator, 2 log 2 = 1.386 for the discriminator.")]
    epochs = [row["epoch"] for row in rows["described"]]
    for beside, names in (("training images", list(MEASURES)[:3]), ("held-out images", list(MEASURES)[3:])):
        if rows["described"][0][names[0]] is not None:
            made.append(picture(f"measured_{names[0]}", figures.curves_figure({MEASURES[name]: {
                **{variant: (epochs, [row[name] for row in found]) for variant, found in rows.items()},
                beside: (epochs, [real[name]] * len(epochs))} for name in names}),
                f"{', '.join(names)} of {real['images']:,} samples of the same noise, against epochs."))
    near = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(study.train.floats().flatten(1))
    for variant, images in drawn.items():
        index = near.kneighbors(images[:8].flatten(1) / 255, return_distance=False)
        made.append(picture(f"neighbours_{variant}", figures.rows_figure({"sample": images[:8] / 255, **{
            f"training {i + 1}": study.train.pixels[index[:, i]] / 255 for i in range(3)}}),
            f"{variant}: the first eight samples and the three training images nearest to each, by pixels."))
    return made
