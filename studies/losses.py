"""The losses of a VAE, in nats, one value per image, and what the studies' VAEs share.

[1] Kingma & Welling 2014, arXiv:1312.6114    [2] Higgins et al. 2017 (beta-VAE), ICLR
"""
import torch
import torch.nn.functional as F


def binary_cross_entropy(logits, x):
    """-sum_i [x_i log p_i + (1 - x_i) log(1 - p_i)] with p = sigmoid(logits), (B,), for logits and images (B, ...) in
    [0, 1]: -log p(x|z) of Bernoulli pixels [1, appendix C.1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none").flatten(1).sum(1)


def mse_per_image(y, x):
    """Mean squared error over the pixels, (B,), for images (B, ...)."""
    return (y - x).square().flatten(1).mean(1)


def kl_divergence(mean, log_variance):
    """KL(N(mean, exp(log_variance)) || N(0, I)) = -1/2 sum_j (1 + log_variance_j - mean_j^2 - variance_j), (B,), for
    mean and log-variance (B, D) [1, appendix B]."""
    mean, log_variance = mean.float(), log_variance.float()  # bfloat16 has three digits
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)


def reparameterize(mean, log_variance):
    """z = mean + standard deviation * noise, noise ~ N(0, I), all (B, D) [1, section 2.4]."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


class GaussianVAE:
    """What VAEs share: a StudyModule adds `posterior`, images (B, C, H, W) -> mean and log-variance of q(z|x), each
    (B, D), and `decoder`, latents (B, D) -> logits of the pixels."""

    def encode(self, x):
        """Images (B, C, H, W) -> means (B, D)."""
        return self.posterior(x)[0]

    def decode(self, z):
        """Latents (B, D) -> images (B, C, H, W) in [0, 1]."""
        return self.decoder(z).sigmoid()

    def reconstruct(self, x):
        """Images (B, C, H, W) -> images, decoded from the means."""
        return self.decode(self.encode(x))
