"""The quantizers of a VQ-VAE: each position of the encoder's feature map becomes the nearest of K code vectors e_k.

VectorQuantizer: the codebook is a parameter, trained by ||sg[z] - e||^2 + beta ||z - sg[e]||^2 ([1], equation 3; sg
stops the gradient). EMAVectorQuantizer: it follows the encoder by exponential moving averages ([1], appendix A.1):
    N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) sum of the z nearest to k,   e_k = m_k / N_k
A code that hardly any position is nearest to is dead, as all are at first; it is reinitialized to a random position of
the batch [2]. With several processes, DistributedDataParallel broadcasts the first one's codebook, a buffer.

[1] van den Oord, Vinyals & Kavukcuoglu 2017, arXiv:1711.00937    [2] Dhariwal et al. 2020 (Jukebox), arXiv:2005.00341
"""
import math

import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn


def perplexity(counts):
    """exp of the entropy of codes that occur so often (K,): K if all are equally frequent, 1 if there is only one."""
    return math.exp(scipy.stats.entropy(counts.cpu().numpy()))


class VectorQuantizer(nn.Module):
    """K code vectors (K, D), a parameter that the loss trains; at first uniform in -1/K to 1/K."""

    def __init__(self, num_embeddings, embedding_dim, commitment_cost=0.25):
        super().__init__()
        self.commitment_cost = commitment_cost
        self.codebook = nn.Parameter(torch.empty(num_embeddings, embedding_dim).uniform_(
            -1 / num_embeddings, 1 / num_embeddings))

    def nearest(self, z):
        """Index (B, H, W) of the code nearest to each position of maps (B, D, H, W)."""
        rows = z.detach().float().permute(0, 2, 3, 1)
        return torch.cdist(rows.flatten(0, 2), self.codebook).argmin(1).view(rows.shape[:3])

    def look_up(self, index):
        """Index (B, H, W) -> code vectors (B, D, H, W)."""
        return self.codebook[index].permute(0, 3, 1, 2)

    def forward(self, z):
        """Maps z (B, D, H, W) -> quantized maps, whose gradient goes straight through to z; the loss of the codebook
        and of the encoder's commitment to it, means over all numbers of the maps; index (B, H, W)."""
        index = self.nearest(z)
        quantized = self.look_up(index)
        loss = F.mse_loss(quantized, z.detach().float()) + self.commitment_cost * F.mse_loss(
            z.float(), quantized.detach())
        return z + (quantized - z).detach(), loss, index


class EMAVectorQuantizer(VectorQuantizer):
    """K code vectors (K, D), buffers that learn in the forward pass of training mode. A code is dead if its average
    count is below the share `dead_below` of an even one, B * H * W / K."""

    def __init__(self, num_embeddings, embedding_dim, commitment_cost=0.25, decay=0.95, dead_below=0.05):
        super().__init__(num_embeddings, embedding_dim, commitment_cost)
        self.decay, self.dead_below = decay, dead_below
        del self.codebook
        self.register_buffer("codebook", torch.zeros(num_embeddings, embedding_dim))
        self.register_buffer("counts", torch.zeros(num_embeddings))               # N
        self.register_buffer("sums", torch.zeros(num_embeddings, embedding_dim))  # m

    def forward(self, z):
        """As above; the loss is that of the commitment only."""
        rows = z.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        if self.training:
            self._reinitialize_dead_codes(rows)
        index = self.nearest(z)
        quantized = self.look_up(index)
        if self.training:
            self.counts.lerp_(index.flatten().bincount(minlength=len(self.counts)).float(), 1 - self.decay)
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, index.flatten(), rows), 1 - self.decay)
            self.codebook.copy_(self.sums / self.counts[:, None])
        return z + (quantized - z).detach(), self.commitment_cost * F.mse_loss(z.float(), quantized), index

    def _reinitialize_dead_codes(self, rows):
        even = len(rows) / len(self.counts)
        dead = self.counts < self.dead_below * even
        self.codebook[dead] = rows[torch.randint(len(rows), (int(dead.sum()),), device=rows.device)]
        self.counts[dead], self.sums[dead] = even, self.codebook[dead] * even


class Residual(nn.Module):
    """x + f(x) with a 3 x 3 and a 1 x 1 convolution [1, section 4.1]."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width // 2, 3, 1, 1, bias=False),
                                  nn.BatchNorm2d(width // 2), nn.ReLU(),
                                  nn.Conv2d(width // 2, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.body(x)
