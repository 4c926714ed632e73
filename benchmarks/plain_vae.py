"""The usual solution, for comparison: an MLP VAE (784-512-256-2), standard normal prior, ELBO, Adam, the usual loop."""
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 83  # of the best public solution that was measured


class PlainVAE(nn.Module):
    """Encoder 784-512-256-(2+2) and its mirror image as decoder, ReLU."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 784))

    def encode(self, x):
        """Images (B, 784) -> mean and log-variance, each (B, 2)."""
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z):
        """Latents (B, 2) -> images (B, 784) in [0, 1]."""
        return self.decoder(z).sigmoid()


def train(images, seed=0, epochs=EPOCHS):
    """Trains on images float32 (N, 784) by the ELBO (Kingma & Welling 2014); returns the model in evaluation mode."""
    torch.manual_seed(seed)
    model = PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(torch.from_numpy(images)), batch_size=128, shuffle=True)
    for _ in range(epochs):
        for (x,) in loader:
            mu, logvar = model.encode(x)
            z = mu + (logvar / 2).exp() * torch.randn_like(mu)
            reconstruction = F.binary_cross_entropy(model.decode(z), x, reduction="sum")
            kl = 0.5 * (mu ** 2 + logvar.exp() - 1 - logvar).sum()
            optimizer.zero_grad()
            (reconstruction + kl).backward()
            optimizer.step()
    return model.eval()
