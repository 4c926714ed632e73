"""Networks for colour photos, and photos as training shows them.

All take the sizes that representations.Settings describes: side, widths, latent, mlp_width.
"""
import torch
from torch import nn

from studies import losses


class PhotoVAE(nn.Module):
    """Four strided convolutions, a Gaussian latent, and back."""

    def __init__(self, settings):
        super().__init__()
        widths, corner = settings.widths, settings.side // 2 ** len(settings.widths)
        layers = []
        for width, following in zip((3, *widths), widths):
            layers += [nn.Conv2d(width, following, 4, 2, 1, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
        flat = widths[-1] * corner ** 2
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 2 * settings.latent))
        layers = [nn.Linear(settings.latent, flat, bias=False), nn.Unflatten(1, (widths[-1], corner, corner))]
        for width, following in zip(widths[::-1], (*widths[-2::-1], 3)):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, following, 4, 2, 1,
                                                                            bias=following == 3)]
        self.decoder = nn.Sequential(*layers)

    def posterior(self, x):
        """Images (B, 3, S, S) -> mean and log-variance of q(z|x), each (B, 128)."""
        return self.encoder(x).chunk(2, dim=1)

    def encode(self, x):
        """Images (B, 3, S, S) -> means (B, 128)."""
        return self.posterior(x)[0]

    def decode(self, z):
        """Latents (B, 128) -> images (B, 3, S, S) in [0, 1]."""
        return self.decoder(z).sigmoid()

    def reconstruct(self, x):
        """Images (B, 3, S, S) -> images, from the mean of q(z|x)."""
        return self.decode(self.encode(x))

    def forward(self, x, noise):
        """Images, noise (B, 128) -> Bernoulli logits (B, 3, S, S) of a sampled latent, mean, log-variance."""
        mean, log_variance = self.posterior(x)
        return self.decoder(losses.reparameterize(mean, log_variance, noise)), mean, log_variance


def photo_classifier(settings, classes):
    """Images (B, 3, S, S) in [0, 1] -> logits (B, K)."""
    layers = []
    for width, following in zip((3, *settings.widths), settings.widths):
        for inputs, stride in ((width, 2), (following, 1)):
            layers += [nn.Conv2d(inputs, following, 3, stride, 1, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(settings.widths[-1], classes))


class FeatureClassifier(nn.Module):
    """An MLP of features (B, D), which it standardises -> logits (B, K)."""

    def __init__(self, width, settings, classes):
        super().__init__()
        self.standard = nn.BatchNorm1d(width, affine=False)
        self.body = nn.Sequential(nn.Linear(width, settings.mlp_width, bias=False), nn.BatchNorm1d(settings.mlp_width),
                                  nn.ReLU(), nn.Linear(settings.mlp_width, classes))

    def forward(self, features, noise):
        """Features and noise, both (B, D) -> logits (B, K)."""
        return self.body(self.standard(features) + noise)


def shifted_and_mirrored(x, down, right, mirror):
    """Images (B, C, S, S) moved by whole px (B,), what enters mirrored at the border, and turned left to right where
    `mirror` (B,) is 1."""
    side = x.shape[-1]
    there = torch.arange(side, device=x.device)

    def places(shift):
        moved = (there + shift[:, None]).abs()
        return side - 1 - (side - 1 - moved).abs()

    rows, columns = places(down), places(right)
    columns = torch.where(mirror[:, None] == 1, side - 1 - columns, columns)
    image, channel = (torch.arange(n, device=x.device).view(shape) for n, shape in (
        (len(x), (-1, 1, 1, 1)), (x.shape[1], (1, -1, 1, 1))))
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
