"""The networks of the study of photos: a VAE [1], a VQ-VAE [3], classifiers of photos [2], of latents and of codes.

[1] Kingma & Welling 2014, arXiv:1312.6114       [3] van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937
[2] He et al. 2016 (ResNet), arXiv:1512.03385
"""
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import v2

from studies import losses, vq
from studies.training import StudyModule, map_batches, mlp


@dataclasses.dataclass(frozen=True)
class Settings:
    """Colour photos, in [-1, 1] inside the networks. The values are those of the source report and, where it leaves
    them open, of the notebook that it summarizes."""
    side: int = 128
    seed: int = 0
    weight_decay: float = 0.0   # of AdamW, which is Adam without it
    scheduled: bool = False     # learning rate: one cycle, up in a tenth of the steps, then down as a half cosine
    augmented: bool = False     # random crop of a photo padded by 4 px, horizontal flip
    # VAE: convolutions 3-32-64-128-256-512 of kernel 4, stride 2, padding 1, ReLU; 128 means and log-variances; back
    widths: tuple = (32, 64, 128, 256, 512)
    batch_norm: bool = False
    latent: int = 128
    kl_weight: float = 1.0      # for means over pixels and dimensions
    largest_log_variance: float = None  # smooth bound; without it the exp of one leaps in the first steps of high rates
    vae_lr: float = 2e-4
    vae_batch_size: int = 32
    vae_epochs: int = 6
    z_samples: tuple = (1, 1, 1, 1, 5, 10)  # of z per photo, by epoch; the last number stays
    last_batches: int = 51      # in each epoch of the last number of samples, if one process trains; 0: all
    # classifier of photos
    resnet: bool = True         # else two 3 x 3 convolutions for each of `widths`
    cnn_lr: float = 1e-3
    cnn_batch_size: int = 16
    cnn_epochs: int = 5
    # classifiers of the latents and of the codes: 128-64-classes, full-batch training
    hidden: int = 64
    dropout: float = 0.0        # with it, standardized features and batches of 128
    mlp_lr: float = 1e-3
    mlp_epochs: int = 20
    codes_mlp_epochs: int = 25
    # VQ-VAE: convolutions 3-32-64 of kernel 4, stride 2, padding 1, ReLU; 128 codes of 64 dimensions; back
    vq_widths: tuple = (32, 64)
    residual_blocks: int = 0
    num_embeddings: int = 128
    commitment_cost: float = 0.25
    ema_codebook: bool = False
    code_map: bool = False      # features for the MLP: of the map of codes; else the mean of the indices
    vq_lr: float = 1e-3
    vq_batch_size: int = 32
    vq_epochs: int = 8
    # mixture of the latents' density; of several numbers of components the likeliest on a fifth of the latents
    components: tuple = (20,)
    reg_covar: float = 1e-6
    most_train: int = 20_000
    most_test: int = 2000
    feature_steps: int = 1500   # batches that the classifier behind the FID is trained for


VARIANTS = {"tuned": {
    "side": 64, "weight_decay": 0.05, "scheduled": True, "augmented": True, "widths": (32, 64, 128, 256),
    "batch_norm": True, "kl_weight": 0.0015, "largest_log_variance": 2.0, "vae_lr": 1e-3, "vae_epochs": 20,
    "z_samples": (1,), "last_batches": 0, "resnet": False, "cnn_epochs": 60, "hidden": 256, "dropout": 0.5,
    "mlp_epochs": 40, "codes_mlp_epochs": 40, "residual_blocks": 2, "num_embeddings": 256, "ema_codebook": True,
    "code_map": True, "vq_batch_size": 16, "vq_epochs": 60, "components": (1, 2, 4, 8, 20), "reg_covar": 1e-3}}
QUICK = {"side": 32, "widths": (16, 32, 64), "most_train": 600, "most_test": 200, "vae_epochs": 6, "cnn_epochs": 3,
         "vq_epochs": 8, "mlp_epochs": 20, "codes_mlp_epochs": 25, "feature_steps": 75}


class PhotoModule(StudyModule):
    """What the networks share: augmentation, the optimizer and its schedule; each sets `lr`."""

    def __init__(self, settings, **more):
        super().__init__()
        settings = settings if isinstance(settings, dict) else dataclasses.asdict(settings)
        self.save_hyperparameters({"settings": settings, **more})
        self.settings = Settings(**settings)
        self.scheduled = self.settings.scheduled
        self.augment = v2.Compose([v2.RandomCrop(self.settings.side, 4, padding_mode="reflect"),
                                   v2.RandomHorizontalFlip()])

    def training_step(self, batch, index):
        x, y = batch
        if self.settings.augmented and x.dim() == 4:  # photos, not features
            x = torch.stack([self.augment(photo) for photo in x])
        return super().training_step((x, y), index)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.settings.weight_decay)
        if not self.scheduled:
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, self.trainer.estimated_stepping_batches, pct_start=0.1, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PhotoVAE(losses.GaussianVAE, PhotoModule):
    """Photos (B, 3, S, S) -> q(z|x) = N(mean, exp(log-variance)) [1] -> photos."""

    def __init__(self, settings):
        super().__init__(settings)
        settings, self.lr = self.settings, self.settings.vae_lr
        widths, corner = (3, *settings.widths), settings.side // 2 ** len(settings.widths)
        flat, self.latent = widths[-1] * corner ** 2, settings.latent

        def activated(width):
            return [*[nn.BatchNorm2d(width)] * settings.batch_norm, nn.ReLU()]

        down, up = [], [nn.Linear(self.latent, flat), nn.Unflatten(1, (widths[-1], corner, corner))]
        for width, following in zip(widths, widths[1:]):
            down += [nn.Conv2d(width, following, 4, 2, 1), *activated(following)]
        for width, following in zip(widths[:0:-1], widths[-2::-1]):
            up += [nn.ConvTranspose2d(width, following, 4, 2, 1), *(activated(following) if following > 3 else [])]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.fc_mu, self.fc_logvar = nn.Linear(flat, self.latent), nn.Linear(flat, self.latent)
        self.decoder = nn.Sequential(*up, nn.Tanh())

    def posterior(self, x):
        """Photos (B, 3, S, S) in [0, 1] -> mean and log-variance of q(z|x), each (B, latent)."""
        features, largest = self.encoder(2 * x - 1), self.settings.largest_log_variance
        log_variance = self.fc_logvar(features)
        if largest is not None:
            log_variance = largest - F.softplus(largest - log_variance)
        return self.fc_mu(features), log_variance

    def moments(self, x):
        """Photos (B, 3, S, S) -> means, then log-variances, in one tensor (B, 2 latent)."""
        return torch.cat(self.posterior(x), dim=1)

    def decode(self, z):
        """Latents (B, latent) -> photos (B, 3, S, S) in [0, 1]."""
        return (self.decoder(z) + 1) / 2

    def losses(self, x, y):
        """Squared error in [-1, 1], mean over samples of z and pixels, + KL weight * KL, mean over the dimensions."""
        samples = self.settings.z_samples[min(self.current_epoch, len(self.settings.z_samples) - 1)]
        mean, log_variance = self.posterior(x)
        decoded = (self.decoder(losses.reparameterize(mean, log_variance))
                   for _ in range(samples if self.training else 1))
        errors = [losses.mse_per_image(y, 2 * x - 1).mean() for y in decoded]
        reconstruction, kl = sum(errors) / len(errors), losses.kl_divergence(mean, log_variance).mean() / self.latent
        return {"loss": reconstruction + self.settings.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}

    def training_step(self, batch, index):
        last = self.current_epoch >= len(self.settings.z_samples) - 1
        if last and 0 < self.settings.last_batches <= index and self.trainer.world_size == 1:
            return None  # Lightning skips the batch, of one process only
        return super().training_step(batch, index)


class VQVAE(PhotoModule):
    """Photos -> S/4 x S/4 codes -> photos [3]."""

    def __init__(self, settings):
        super().__init__(settings)
        settings, self.lr = self.settings, self.settings.vq_lr
        (low, high), blocks = settings.vq_widths, settings.residual_blocks
        quantizer = vq.EMAVectorQuantizer if settings.ema_codebook else vq.VectorQuantizer
        self.encoder = nn.Sequential(
            nn.Conv2d(3, low, 4, 2, 1), nn.ReLU(), nn.Conv2d(low, high, 4, 2, 1),
            *[vq.Residual(high) for _ in range(blocks)])
        self.quantizer = quantizer(settings.num_embeddings, high, settings.commitment_cost)
        self.decoder = nn.Sequential(
            *[vq.Residual(high) for _ in range(blocks)], nn.ConvTranspose2d(high, low, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(low, 3, 4, 2, 1), nn.Tanh())

    def encode(self, x):
        """Photos (B, 3, S, S) in [0, 1] -> index of the nearest code (B, S/4, S/4)."""
        return self.quantizer.nearest(self.encoder(2 * x - 1))

    def reconstruct(self, x):
        """Photos (B, 3, S, S) -> photos in [0, 1]."""
        return (self.decoder(self.quantizer.look_up(self.encode(x))) + 1) / 2

    def features(self, x):
        """Photos (B, 3, S, S) -> the mean of the code indices (B, 1); with `code_map` the square roots of each code's
        share in each quarter of the map and the code vectors averaged over 4 x 4 squares of it, (B, 4 K + 16 D)."""
        index = self.encode(x)
        if not self.settings.code_map:
            return index.float().flatten(1).mean(1, keepdim=True)
        shares = F.adaptive_avg_pool2d(F.one_hot(index, self.settings.num_embeddings).movedim(3, 1).float(), 2)
        pooled = F.adaptive_avg_pool2d(self.quantizer.look_up(index), 4)
        return torch.cat([shares.sqrt().flatten(1), pooled.flatten(1)], dim=1)

    def losses(self, x, y):
        quantized, quantization, index = self.quantizer(self.encoder(2 * x - 1))
        mse = losses.mse_per_image(self.decoder(quantized).float(), 2 * x - 1).mean()
        perplexity = vq.perplexity(index.flatten().bincount())
        return {"loss": mse + quantization, "mse": mse, "quantization": quantization,
                "perplexity": torch.tensor(perplexity, device=self.device)}


class Classifier(PhotoModule):
    """Logits (B, classes) of photos (B, 3, S, S) in [0, 1] or, with `features`, of feature vectors (B, features)."""

    def __init__(self, settings, classes, features=0):
        super().__init__(settings, classes=classes, features=features)
        self.lr = self.settings.mlp_lr if features else self.settings.cnn_lr
        self.layers = feature_classifier(self.settings, features, classes) if features else photo_classifier(
            self.settings, classes)

    def forward(self, x):
        return self.layers(2 * x - 1 if x.dim() == 4 else x)

    def losses(self, x, y):
        logits = self(x)
        return {"loss": F.cross_entropy(logits, y), "error_rate": (logits.argmax(1) != y).float().mean()}

    def accuracies(self, images):
        """{"accuracy" on data.Images of photos or features, "train_accuracy" of the last epoch}."""
        found = map_batches(self.forward, images.pixels).argmax(1)
        return {"accuracy": float((found == images.labels).float().mean()),
                "train_accuracy": 1 - self.history[-1]["train_error_rate"]}


def photo_classifier(settings, classes):
    """A ResNet-18, or a small CNN: two 3 x 3 convolutions for each width, global average pooling, a linear layer."""
    if settings.resnet:
        return resnet18(weights=None, num_classes=classes)
    layers = []
    for width, following in zip((3, *settings.widths), settings.widths):
        for n_in, stride in ((width, 2), (following, 1)):
            layers += [nn.Conv2d(n_in, following, 3, stride, 1, bias=False), nn.BatchNorm2d(following), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(settings.widths[-1], classes))


def feature_classifier(settings, features, classes):
    """An MLP with one hidden layer; with dropout, of standardized features."""
    layers = mlp(features, settings.hidden, classes)
    if settings.dropout:
        layers = [nn.BatchNorm1d(features, affine=False), nn.Dropout(settings.dropout), *layers[:2],
                  nn.Dropout(settings.dropout), layers[2]]
    return nn.Sequential(*layers)
