"""The losses that several studies share, in nats, one value an image.

[1] Kingma & Welling 2014, arXiv:1312.6114    [2] Higgins et al. 2017 (beta-VAE), ICLR
"""
import vae


def bernoulli_nll(logits, x):
    """-log p(x|z) = -sum_i [x_i log p_i + (1 - x_i) log(1 - p_i)] with p = sigmoid(logits): the binary cross-entropy
    summed over the pixels, (B,), for logits and images (B, ...) in [0, 1] [1, appendix C.1]."""
    return vae.reconstruction_loss(logits.float().flatten(1), x.flatten(1))


def kl_to_standard_normal(mean, log_variance):
    """KL(N(mean, exp(log_variance)) || N(0, I)) = 1/2 sum_j (mean_j^2 + variance_j - 1 - log variance_j), (B,), for
    mean and log-variance (B, D) [1, appendix B]."""
    return vae.kl_to_component(mean.float(), log_variance.float(), 0.0)  # bfloat16 has three digits


def negative_elbo(logits, x, mean, log_variance, beta=1.0):
    """(-log p(x|z) + beta KL, -log p(x|z), KL), each (B,): the loss of a VAE [1], for beta other than 1 that of a
    beta-VAE [2]."""
    reconstruction, kl = bernoulli_nll(logits, x), kl_to_standard_normal(mean, log_variance)
    return reconstruction + beta * kl, reconstruction, kl


def reparameterize(mean, log_variance, noise):
    """z = mean + standard deviation * noise, all (B, D) [1, section 2.4]."""
    return vae.VAE.reparameterize(mean, log_variance, noise)


def squared_error(x, y):
    """Mean squared error over the pixels, (B,), for images (B, ...) in [0, 1]."""
    return ((x - y) ** 2).flatten(1).mean(1)
