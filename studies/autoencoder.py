"""Study 1: an autoencoder (AE) and a variational autoencoder (VAE) [1] of the same layers, side by side.

Described: 784-128-64-32 and back, ReLU between, sigmoid at the end; the AE minimises the squared error, the VAE the
squared error + KL, each summed over an image; Adam 1e-3, batches of 128, 50 epochs, MNIST.
--variant bce: binary cross-entropy in place of the squared error.

[1] Kingma & Welling 2014, arXiv:1312.6114
"""
import dataclasses
import itertools

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import nn

from studies import figures, losses, metrics, report
from studies.training import StudyModule, decode_prior, map_batches, mlp


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greyscale images of 28 x 28 px, as 784 numbers in [0, 1]."""
    side: int = 28
    widths: tuple = (128, 64)
    latent: int = 32
    loss: str = "mse"           # or bce; summed over the pixels
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 50
    seed: int = 0
    most_train: int = 60_000
    most_test: int = 10_000
    tsne_points: int = 2000
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


VARIANTS = {"bce": {"loss": "bce"}}
QUICK = {"most_train": 4000, "most_test": 1000, "tsne_points": 600, "feature_steps": 250}


class Autoencoder(losses.GaussianVAE, StudyModule):
    """784-128-64-32-64-128-784; the VAE's encoder gives 32 means and 32 log-variances of q(z|x) [1]."""

    def __init__(self, settings, variational):
        super().__init__()
        settings = Settings(**settings) if isinstance(settings, dict) else settings
        self.save_hyperparameters({"settings": dataclasses.asdict(settings), "variational": variational})
        self.settings, self.latent, self.variational = settings, settings.latent, variational
        self.encoder = nn.Sequential(*mlp(settings.side ** 2, *settings.widths, settings.latent * (1 + variational)))
        self.decoder = nn.Sequential(*mlp(settings.latent, *settings.widths[::-1], settings.side ** 2),
                                     nn.Unflatten(1, (1, settings.side, settings.side)))

    def losses(self, x, y):
        mean, log_variance = self.posterior(x)
        logits = self.decoder(losses.reparameterize(mean, log_variance) if self.variational else mean)
        reconstruction = (losses.binary_cross_entropy(logits, x) if self.settings.loss == "bce" else
                          losses.mse_per_image(logits.sigmoid(), x) * x[0].numel()).mean()  # summed over the pixels
        kl = {"kl": losses.kl_divergence(mean, log_variance).mean()} if self.variational else {}
        return {"loss": reconstruction + sum(kl.values()), "reconstruction": reconstruction, **kl}

    def posterior(self, x):
        """Images (B, 1, S, S) -> mean and log-variance of q(z|x), each (B, 32); of the AE, the latents and None."""
        code = self.encoder(x.flatten(1))
        return code.chunk(2, dim=1) if self.variational else (code, None)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.settings.lr)


TITLE = "An autoencoder and a VAE of the same layers"
SUBTITLE = "784-128-64-32 and back, {epochs} epochs on {train:,} images of {source[0]}"
EXAMPLE = "python -m studies autoencoder MNIST --out autoencoder --seeds 3 --variant bce"
CHANNELS, NEEDS_CLASSES, TRAINS_ON_BOTH, MODELS = 1, True, False, ("AE", "VAE")
ROWS = {
    "mse": "mean squared error of reconstructions ↓", "loss": "loss, summed over an image",
    "reconstruction": "  its reconstruction term", "kl": "  KL divergence, nats",
    "knn_accuracy": "5-NN accuracy of the latents ↑", "silhouette": "silhouette of the classes, -1 to 1 ↑",
    "tsne": "  in the t-SNE plane ↑", "fid": "FID of samples from N(0, I) ↓", "seconds": "training, seconds"}


def train(study):
    """{"features": (function, facts), (variant, seed, "AE" or "VAE"): Autoencoder}."""
    models = {"features": metrics.train_feature_extractor(study)}
    for (variant, settings), seed, kind in itertools.product(study.variants.items(), study.seeds, MODELS):
        torch.manual_seed(seed)
        models[variant, seed, kind] = study.run.fit(
            f"{kind.lower()}_{variant}_seed{seed}", Autoencoder(settings, kind == "VAE"), study.train, study.test,
            epochs=settings.epochs, batch_size=settings.batch_size, seed=seed)
    return models


def measure_model(model, study, extract, seed):
    """Numbers of a trained model on the held-out images. The t-SNE of some of them is kept as model.tsne (N, 2)."""
    train, test, last = study.train, study.test, model.history[-1]
    some = test.subsample(study.settings.tsne_points, study.args.seed)
    train_z, test_z, some_z = (map_batches(model.encode, images.pixels) for images in (train, test, some))
    model.tsne = TSNE(2, perplexity=min(30, (len(some) - 1) / 3), init="pca", random_state=seed).fit_transform(some_z)
    samples = decode_prior(model.decode, model.latent, len(test), seed)
    return {
        "mse": float(losses.mse_per_image(map_batches(model.reconstruct, test.pixels), test.floats()).mean()),
        "loss": last["test_loss"], "reconstruction": last["test_reconstruction"], "kl": last.get("test_kl"),
        "knn_accuracy": metrics.knn_accuracy(train_z, train.labels, test_z, test.labels),
        "silhouette": metrics.silhouette(test_z, test.labels), "tsne": metrics.silhouette(model.tsne, some.labels),
        "fid": metrics.fids(extract, train, test, {"samples": samples}, seed)["samples"], "seconds": model.seconds}


def measure(study, models):
    """{"numbers": {variant: {model: {measure: {"mean", "sd", "values"}}}}, ...} for results.json."""
    extract, facts = models["features"]
    real = metrics.fids(extract, study.train, study.test, {}, study.args.seed)["training images"]
    return {
        "numbers": {variant: metrics.summarise([
            {kind: measure_model(models[variant, seed, kind], study, extract, seed) for kind in MODELS}
            for seed in study.seeds]) for variant in study.variants},
        "features": facts, "real": {"knn_accuracy": facts["guessing"], "fid": real},
        "history": {" ".join(map(str, key)): model.history for key, model in models.items() if key != "features"}}


def course(models, name, expected):
    """(a loss by epoch, mean over the models, in words; whether it "rises" or "falls" as expected, more than half of it
    in the first fifth of the epochs and less than a tenth in the last; None for fewer than 5 epochs)."""
    curve = np.mean([model.curve(name) for model in models], 0)
    marks = np.unique([0, len(curve) // 5, len(curve) - 1 - len(curve) // 5, len(curve) - 1])
    shares = np.diff(curve[marks]) / (curve[-1] - curve[0] or 1)
    settles = bool(shares[0] > 0.5 and abs(shares[-1]) < 0.1) if len(marks) == 4 else None
    return (f"{report.join_numbers(curve[marks].tolist(), 4)} after {report.join_numbers((marks + 1).tolist())} epochs",
            settles and metrics.agrees_with_trend(expected, (curve[0], curve[-1])))


def conclusions(study, models, results):
    """The document's Claims on loss, KL, reconstruction, samples and t-SNE, on each variant."""
    return [claim for variant in study.variants for claim in conclusions_on(variant, study, models, results)]


def conclusions_on(variant, study, models, results):
    """The Claims, compared with the numbers of a variant."""
    (ae, vae), number = (results["numbers"][variant][kind] for kind in MODELS), report.number
    both = {key: f"{number(ae[key])} for the AE and {number(vae[key])} for the VAE" for key in ROWS}
    loss, falls = course([models[variant, seed, "AE"] for seed in study.seeds], "test_loss", "falls")
    kl, rises = course([models[variant, seed, "VAE"] for seed in study.seeds], "test_kl", "rises")
    claims = [
        ("loss", "AE loss decreases rapidly and plateaus lower than VAE",
         f"The AE's held-out loss is {loss}. The VAE's ends at {number(vae['loss'])}, of which "
         f"{number(vae['reconstruction'])} are reconstruction.",
         falls and metrics.agrees_with_trend("rises", *((ae[key], vae[key]) for key in ("loss", "reconstruction")))),
        ("loss", "KL Divergence (VAE): Increases initially and stabilizes",
         f"The held-out KL is {kl}. In the end it is {report.percent(vae['kl']['mean'] / vae['loss']['mean'])} of the "
         "VAE's loss.", rises),
        ("reconstructions", "AE achieves better reconstruction (lower loss)",
         f"The mean squared error is {both['mse']}.", metrics.agrees_with_trend("rises", (ae["mse"], vae["mse"]))),
        ("samples", "[AE] lacks generative capability. VAE … enabling generation of new samples",
         f"The FID of samples is {both['fid']}, that of training images {number(results['real']['fid'])}.",
         None if results["features"]["weak"] else metrics.agrees_with_trend("rises", (vae["fid"], ae["fid"]))),
        ("tsne", "VAE Latent Space (t-SNE): Shows clear clustering",
         f"In the t-SNE plane the silhouette is {both['tsne']}; up to 0.25 there is no substantial structure (Kaufman "
         "& Rousseeuw 1990).",
         metrics.agrees_with_trend("rises", (0.25, vae["tsne"]))),
        ("tsne", "AE Latent Space: Typically less structured than VAE",
         f"Before t-SNE the latents' silhouette is {both['silhouette']}.",
         metrics.agrees_with_trend("rises", *((ae[key], vae[key]) for key in ("tsne", "silhouette"))))]
    return [report.Claim(published, report.of_variant(study, variant) + found, agrees, f"{figure}_{variant}")
            for figure, published, found, agrees in claims]


def sections(study, models, results, picture):
    """The report's sections; the figures are of the first seed's models."""
    columns = {f"{kind}, {variant}": results["numbers"][variant][kind] for variant in study.variants for kind in MODELS}
    return [
        report.Section("Results", [
            "Squared errors are summed over the pixels of an image, which the document leaves open, as in a Gaussian "
            f"log-likelihood; their mean would make the KL weigh {study.settings.side ** 2} times as much.",
            report.features_text(results["features"]),
            "Real images: the FID of training images; for 5-NN, the accuracy of always naming the most frequent class. "
            "↓: lower is better, ↑: higher is better."],
            [report.comparison_table(f"{results['data']['held_out']:,} held-out images; {report.seeds_text(results)}.",
                             {**columns, "real images": results["real"]}, ROWS)]),
        *(report.Section(f"Figures: {variant}", (), (), pictures(variant, study, models, results, picture))
          for variant in study.variants)]


def pictures(variant, study, models, results, picture):
    """The pictures of a variant."""
    seed, test, pair = study.args.seed, study.test, {kind: models[variant, study.args.seed, kind] for kind in MODELS}
    shown, some = test.subsample(12, seed), test.subsample(study.settings.tsne_points, seed)
    unit = "squared error of an image" if study.variants[variant].loss == "mse" else "nats"
    return [
        picture(f"loss_{variant}", figures.curves_figure({
            **{term: {**pair["AE"].curves(term, "AE"), **pair["VAE"].curves(term, "VAE")}
               for term in ("loss", "reconstruction")},
            "KL": pair["VAE"].curves("kl", "VAE")}, {"loss": unit, "reconstruction": unit, "KL": "nats"}),
            f"{variant}: loss, its reconstruction term and the VAE's KL against epochs."),
        picture(f"reconstructions_{variant}", figures.rows_figure({"original": shown.floats(), **{
            kind: map_batches(model.reconstruct, shown.pixels) for kind, model in pair.items()}}),
            f"{variant}: held-out images drawn at random and their reconstructions, the VAE's from means."),
        picture(f"samples_{variant}", figures.grid_figure({f"{kind}, z ~ N(0, I)": decode_prior(
            model.decode, model.latent, 64, seed) for kind, model in pair.items()}),
            f"{variant}: the same 64 latents from N(0, I), decoded by both, not selected."),
        picture(f"tsne_{variant}", figures.scatter_figure(
            {kind: model.tsne for kind, model in pair.items()}, some.labels, some.classes, axis="t-SNE"),
            f"{variant}: t-SNE of the latents by class. Distances have no unit.")]
