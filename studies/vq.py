"""A vector-quantised autoencoder (VQ-VAE): each place of the encoder's map becomes the nearest of K code vectors.

The codebook is no parameter. It follows the encoder by exponential moving averages ([1], appendix A.1):
    N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) sum of the z nearest to k,   e_k = m_k / N_k
A code that hardly any place is nearest to is dead; it starts again as a place of the batch, drawn at random [2]. At
first all are dead, so the codebook begins as encoder outputs. Counts, sums and draws are those of all processes: N
processes have the codebook of one.

[1] van den Oord, Vinyals & Kavukcuoglu 2017, arXiv:1711.00937    [2] Dhariwal et al. 2020 (Jukebox), arXiv:2005.00341
"""
import contextlib

import torch
import torch.nn.functional as F
from torch import distributed, nn


def nearest_codes(z, codebook):
    """Index (N,) of the row of `codebook` (K, D) nearest to each row of z (N, D)."""
    return (codebook.square().sum(1) - 2 * z @ codebook.t()).argmin(1)


def straight_through(z, quantised):
    """The values of `quantised`; its gradient goes to z as if z had not been quantised [1]."""
    return z + (quantised - z).detach()


def perplexity(counts):
    """exp of the entropy of the codes whose counts (K,) these are: K when all are equally frequent, 1 when one is all
    there is."""
    p = counts.double() / counts.sum()
    return float(torch.special.entr(p).sum().exp())


def code_frequencies(index, codes):
    """Square roots of the share of each code in each quarter of the maps (B, H, W) of even sides, (B, 4 K)."""
    quarters = index.unflatten(1, (2, -1)).unflatten(3, (2, -1)).transpose(2, 3).flatten(3).flatten(1, 2)
    counts = torch.zeros(*quarters.shape[:2], codes, device=index.device)
    counts.scatter_add_(2, quarters, torch.ones_like(quarters, dtype=counts.dtype))
    return (counts / quarters.shape[2]).sqrt().flatten(1)


def without_autocast(kind):
    """A context in which no autocast is on, for devices of that kind; older torch knows none for others than these."""
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else contextlib.nullcontext()


class Quantiser(nn.Module):
    """K code vectors (K, D), buffers that learn in the forward pass of training mode.

    decay        of the moving averages
    dead_below   a code is dead whose average count is below this share of B * H * W / K, an even share of a batch
    """

    def __init__(self, codes, width, decay=0.99, dead_below=0.02):
        super().__init__()
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("codebook", torch.zeros(codes, width))
        self.register_buffer("counts", torch.zeros(codes))               # N
        self.register_buffer("sums", torch.zeros(codes, width))          # m
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))  # how often a dead code was started anew

    def look_up(self, index):
        """Index (B, H, W) -> vectors (B, D, H, W)."""
        return self.codebook[index].permute(0, 3, 1, 2)

    def forward(self, z, draws):
        """Maps z (B, D, H, W) and random integers (B,) -> quantised maps (B, D, H, W) and index (B, H, W). In training
        mode the codebook learns; the first of the draws, over all processes, seeds where dead codes begin."""
        with torch.no_grad(), without_autocast(z.device.type):  # sums of bfloat16 would not add up
            places = z.detach().float().permute(0, 2, 3, 1)
            rows = places.reshape(-1, z.shape[1])
            if self.training:
                self._revive(rows, draws)
            index = nearest_codes(rows, self.codebook).view(places.shape[:3])
            quantised = self.look_up(index)
            if self.training:
                self._follow(rows, index.flatten())
        return quantised, index

    def _follow(self, rows, index):
        counts = index.bincount(minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, index, rows)
        self.counts.lerp_(_over_processes(counts), 1 - self.decay)
        self.sums.lerp_(_over_processes(sums), 1 - self.decay)
        self.codebook.copy_(self.sums / self.counts[:, None])

    def _revive(self, rows, draws):
        sizes = torch.zeros(_world(), device=rows.device, dtype=torch.int64)  # rows of each process
        sizes[_rank()] = len(rows)
        total = int(_over_processes(sizes).sum())
        even = total / len(self.codebook)
        dead = self.counts < self.dead_below * even
        if not dead.any():  # all processes hold the same counts, so they agree
            return
        seed = draws[:1].clone()
        if _world() > 1:
            distributed.broadcast(seed, 0)
        drawn = torch.Generator().manual_seed(int(seed))
        place = torch.randint(total, (len(self.codebook),), generator=drawn).to(rows.device) - sizes[:_rank()].sum()
        here = (place >= 0) & (place < len(rows))
        fresh = torch.where(here[:, None], rows[place.clamp(0, len(rows) - 1)], torch.zeros_like(self.codebook))
        self.codebook[dead] = _over_processes(fresh)[dead]
        self.counts[dead] = even
        self.sums[dead] = self.codebook[dead] * even
        self.revived += dead.sum()


def _world():
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _rank():
    return distributed.get_rank() if _world() > 1 else 0


def _over_processes(values):
    """The sum of `values` over the processes, in place."""
    if _world() > 1:
        distributed.all_reduce(values)
    return values


class Residual(nn.Module):
    """x + f(x) with a 3 x 3 and a 1 x 1 convolution [1, section 4.1]."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width // 2, 3, 1, 1, bias=False),
                                  nn.BatchNorm2d(width // 2), nn.ReLU(),
                                  nn.Conv2d(width // 2, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.body(x)


class VQVAE(nn.Module):
    """Images of side S -> S/4 x S/4 codes -> images: two strided convolutions and two residual blocks, and back [1]."""

    def __init__(self, channels=3, widths=(32, 64), codes=256, code_width=64, decay=0.99, dead_below=0.02):
        super().__init__()
        low, high = widths
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, low, 4, 2, 1, bias=False), nn.BatchNorm2d(low), nn.ReLU(),
            nn.Conv2d(low, high, 4, 2, 1, bias=False), nn.BatchNorm2d(high),
            Residual(high), Residual(high), nn.ReLU(), nn.Conv2d(high, code_width, 1))
        self.quantiser = Quantiser(codes, code_width, decay, dead_below)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_width, high, 3, 1, 1), Residual(high), Residual(high), nn.ReLU(),
            nn.ConvTranspose2d(high, low, 4, 2, 1, bias=False), nn.BatchNorm2d(low), nn.ReLU(),
            nn.ConvTranspose2d(low, channels, 4, 2, 1))

    def encode(self, x):
        """Images (B, C, S, S) -> index of the nearest code (B, S/4, S/4)."""
        z = self.encoder(x).permute(0, 2, 3, 1)
        return nearest_codes(z.flatten(0, 2), self.quantiser.codebook).view(z.shape[:3])

    def reconstruct(self, x):
        """Images (B, C, S, S) -> images in [0, 1]."""
        return self.decoder(self.quantiser.look_up(self.encode(x))).sigmoid()

    def features(self, x):
        """What a classifier gets of images (B, C, S, S): how often each code occurs in each quarter of the map, and
        the code vectors averaged over 4 x 4 squares of it, (B, 4 K + 16 D)."""
        index = self.encode(x)
        pooled = F.adaptive_avg_pool2d(self.quantiser.look_up(index), 4)
        return torch.cat([code_frequencies(index, len(self.quantiser.codebook)), pooled.flatten(1)], dim=1)

    def forward(self, x, draws):
        """Images and random integers (B,) -> reconstructions (B, C, S, S) in [0, 1], and the mean squared difference
        of the encoder's outputs from their codes, whose gradient moves the encoder alone ([1, equation 3] sums it over
        the dimensions)."""
        z = self.encoder(x)
        quantised, _ = self.quantiser(z, draws)
        return self.decoder(straight_through(z, quantised)).sigmoid(), F.mse_loss(z.float(), quantised)
