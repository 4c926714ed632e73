"""Part I: a convolutional network, trained from scratch, that classifies bird species.

    python bird.py DATASET train bird.pth    photos in DATASET/<class>/; writes bird.pth and bird_history.json
    python bird.py DATASET test bird.pth     writes bird.csv, one row per photo, in the order of torchvision ImageFolder

At test time DATASET is a folder of class folders, a folder of photos, or one photo.

Model         Residual network [1] with batch normalization [2]: a convolution of stride 4, four residual blocks,
              average and max pooling (birds differ much in size), dropout, one linear layer
Augmentation  Random resized crops [3], rotation, horizontal flip and color jitter, applied per batch; progressive
              resizing: small crops first, because they are cheap; mixup and CutMix [5, 6]
Loss          Class-weighted cross-entropy with label smoothing [4]
Optimizer     Muon [7] for the convolutions, AdamW for the rest; linear warm-up and cosine decay [8]; the exponential
              moving average (EMA) of the weights [9] is validated and saved
Selection     The lowest validation loss among the epochs with the largest crops; early stopping
Prediction    Class probabilities averaged over a center crop [10] and its mirror image

[1] He et al. 2016, arXiv:1512.03385            [6] Yun et al. 2019 (CutMix), arXiv:1905.04899
[2] Ioffe & Szegedy 2015, arXiv:1502.03167      [7] Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982
[3] Szegedy et al. 2015, arXiv:1409.4842        [8] Loshchilov & Hutter 2017 (SGDR), arXiv:1608.03983
[4] Szegedy et al. 2016, arXiv:1512.00567       [9] Polyak & Juditsky 1992, SIAM J. Control Optim. 30:838
[5] Zhang et al. 2018 (mixup), arXiv:1710.09412 [10] Touvron et al. 2019 (FixRes), arXiv:1906.06423
"""
import argparse
import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor

if __name__ == "__main__":  # importing torch takes a second; Ctrl-C during that second also prints one line
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"bird.py: interrupted\n"), os._exit(130)))
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # operations that MPS lacks run on the CPU
    if any("error" in option for option in sys.warnoptions):  # python -W error: a warning must not abort training
        warnings.simplefilter("default")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SubsetRandomSampler

# ---------------------------------------------------------------------------------------------------- hyper-parameters

WIDTHS = (64, 128, 256, 512)    # channels of the residual blocks; the first is also that of the stem
BATCH_NORM = True               # after each convolution; without it each has a bias
DECODED_SIZE = 4 / 3            # side of the decoded photos relative to the largest crops: room to zoom
TEST_VIEWS = ((0.8, False), (0.8, True))  # (center crop as a fraction of the side, flipped); why crop: [10]
MAX_IN_MEMORY = 2 * 10 ** 9     # bytes of decoded photos; more are kept in a temporary file
HIDDEN = (".", "__MACOSX")      # prefixes of the names of files and folders that are ignored
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters of a training run."""
    epochs: int = 200
    batch_size: int = 64
    lr: float = 6e-3             # peak of linear warm-up and cosine decay
    warmup: float = 0.1          # progress, from 0 to 1, at the peak
    patience: int = 10           # early stopping: epochs with the largest crops and no lower validation loss
    weight_decay: float = 0.1    # of the convolutions
    dropout: float = 0.2
    label_smoothing: float = 0.1
    class_weights: bool = True   # inversely proportional to class frequency
    ema_decay: float = 0.996     # per step; 0 disables the EMA
    mixup: float = 0.2           # fraction of the batches
    cutmix: float = 0.4          # fraction of the batches
    mix_until: float = 0.9       # progress after which mixup and CutMix are off
    image_size: int = 192        # px, side of the largest crops
    progressive: tuple = ((0.4, 1 / 2), (0.7, 2 / 3), (0.85, 5 / 6))  # (until this progress, side relative to it)
    crop_scale: float = 0.3      # minimum area of a crop, as a fraction of the photo's
    crop_ratio: float = 4 / 3    # maximum aspect ratio of a crop, either way
    rotate: float = 15.0         # degrees, either way
    hflip: float = 0.5           # probability
    color_jitter: float = 0.3    # maximum relative change of brightness, contrast, saturation
    channel_jitter: float = 0.08  # maximum relative change of one color channel
    val_fraction: float = 0.1    # of each class's photos
    seed: int = 0


class InputError(ValueError):
    """Bad input: one line with the file, what was expected and what was found."""


# --------------------------------------------------------------------------------------------------------------- model

def _conv(n_in, n_out, kernel_size, stride=1):
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel_size, stride, kernel_size // 2, bias=not BATCH_NORM),
                         nn.BatchNorm2d(n_out) if BATCH_NORM else nn.Identity())


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + conv(relu(conv(x)))), 3 x 3 convolutions with batch normalization [1]. Where the shape
    changes, the shortcut is average pooling and a 1 x 1 convolution."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.conv2 = _conv(n_in, n_out, 3, stride), _conv(n_out, n_out, 3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
            _conv(n_in, n_out, 1) if (n_in, stride) != (n_out, 1) else nn.Identity())
        if BATCH_NORM:
            nn.init.zeros_(self.conv2[1].weight)  # each block starts as its shortcut

    def forward(self, x):
        return F.relu_(self.conv2(F.relu_(self.conv1(x))).add_(self.shortcut(x)))


class BirdClassifier(nn.Module):
    """Residual network for square photos. Its state_dict also holds the class names, the number of training photos of
    each and the image size (`metadata`); loading it sets the number of classes."""

    def __init__(self, classes=tuple("0123456789"), counts=(1,) * 10, image_size=192, dropout=0.0):
        super().__init__()
        self.metadata = {"classes": list(classes), "counts": list(counts), "image_size": image_size}
        self.stem = nn.Sequential(_conv(3, WIDTHS[0], 7, 4), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(ResidualBlock(WIDTHS[0], WIDTHS[0], 1),
                                    *(ResidualBlock(n_in, n_out, 2) for n_in, n_out in zip(WIDTHS, WIDTHS[1:])))
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(2 * WIDTHS[-1], len(classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        """Photos (B, 3, H, W) in [0, 1], of 32 px or more -> logits (B, K)."""
        x = self.blocks(self.stem(4 * x - 2))                             # (B, 512, H / 32, W / 32)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)            # (B, 1024)
        return self.head(self.dropout(x)).float()

    def get_extra_state(self):
        """`metadata` as a tensor of the bytes of its JSON, so that the state_dict holds tensors only."""
        return torch.tensor(list(json.dumps(self.metadata).encode()), dtype=torch.uint8)

    def set_extra_state(self, state):
        """Called by load_state_dict, before it loads the head. Raises ValueError, KeyError or TypeError."""
        metadata = json.loads(bytes(state.tolist()).decode())
        classes, counts, size = (metadata[key] for key in ("classes", "counts", "image_size"))
        if not (isinstance(size, int) and 32 <= size <= 4096 and len(classes) == len(counts) > 0
                and all(isinstance(name, str) for name in classes) and all(isinstance(n, int) for n in counts)):
            raise ValueError("class names, counts and image size that do not fit")
        self.metadata = metadata
        if self.head.out_features != len(classes):
            self.head = nn.Linear(self.head.in_features, len(classes)).to(self.head.weight.device)


# ---------------------------------------------------------------------------------------------------------------- loss

def balanced_weights(counts):
    """Class weights (K,), inversely proportional to the counts (K,): mean 1 over the photos, 0 for an empty class."""
    counts = torch.as_tensor(counts, dtype=torch.float32)
    return torch.where(counts > 0, counts.sum() / (counts.clamp(min=1) * (counts > 0).sum()), torch.zeros(()))


# -------------------------------------------------------------------------------------------------------- augmentation

def augment(photos, size, config, generator):
    """Photos uint8 (B, 3, S, S) -> random crops, float32 (B, 3, size, size) in [0, 1], on the same device. Crop, flip
    and rotation are composed into one affine map, so that each photo is resampled once."""
    n, device = len(photos), photos.device

    def uniform(low, high, shape=(n,)):
        return torch.rand(shape, generator=generator) * (high - low) + low

    area, log_ratio = uniform(config.crop_scale, 1), math.log(config.crop_ratio)
    ratio = uniform(-log_ratio, log_ratio).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # relative to the photo
    x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    angle = uniform(-config.rotate, config.rotate) * (math.pi / 180)
    flip = 1 - 2 * (uniform(0, 1) < config.hflip).float()
    affine = torch.stack([torch.stack([width * angle.cos() * flip, -width * angle.sin(), x], dim=1),
                          torch.stack([height * angle.sin() * flip, height * angle.cos(), y], dim=1)], dim=1)
    jitter, channels = config.color_jitter, config.channel_jitter
    brightness, contrast, saturation = uniform(1 - jitter, 1 + jitter, (3, n, 1, 1, 1)).to(device)
    channel_factors = uniform(1 - channels, 1 + channels, (n, 3, 1, 1)).to(device)

    # The grid of F.affine_grid, by one matrix product: ten times as fast.
    line = (2 * torch.arange(size, device=device) + 1) / size - 1  # pixel centers; the photo's sides are at -1 and 1
    points = torch.stack([line.repeat(size), line.repeat_interleave(size), torch.ones(size ** 2, device=device)])
    grid = (affine.to(device).view(2 * n, 3) @ points).view(n, 2, size, size).permute(0, 2, 3, 1)
    crops = F.grid_sample(photos.float().div_(255), grid, padding_mode="reflection", align_corners=False)
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops.sub_(mean).mul_(contrast).add_(mean * brightness)
    gray = crops.mean(1, keepdim=True)
    return crops.sub_(gray).mul_(saturation).add_(gray).mul_(channel_factors).clamp_(0, 1)


def mix(photos, targets, config, generator):
    """Mixup [5] with a ratio uniform in [0, 0.5], CutMix [6] with a square of uniform area, one ratio per batch, or no
    change, of photos (B, 3, S, S) and targets (B, K); returns both."""
    draw = torch.rand((), generator=generator).item()
    if draw >= config.mixup + config.cutmix:
        return photos, targets
    order = torch.randperm(len(photos), generator=generator).to(photos.device)
    if draw < config.mixup:
        lam = 0.5 * torch.rand((), generator=generator).item()
        photos = photos.lerp(photos[order], lam)
    else:
        size = photos.shape[-1]
        side = round(size * math.sqrt(torch.rand((), generator=generator).item()))
        top, left = torch.randint(0, size - side + 1, (2,), generator=generator).tolist()
        lam = (side / size) ** 2
        photos = photos.clone()
        photos[:, :, top:top + side, left:left + side] = photos[order, :, top:top + side, left:left + side]
    return photos, targets.lerp(targets[order], lam)


# ---------------------------------------------------------------------------------------------- optimizer and schedule

class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates [7], for convolutions: the Nesterov momentum of a weight (n_out, n_in, h, w)
    is reshaped to matrices (256, n_in h w), one per 256 output channels (faster than one larger matrix); each is
    replaced by an approximately orthonormal one, scaled to the RMS of an AdamW update. Decoupled weight decay."""

    def __init__(self, parameters, lr, weight_decay, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                buffer = self.state[weight]["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"]).permute(0, 2, 3, 1)  # contiguous in channels_last
                rows = 256 if len(update) % 256 == 0 else len(update)
                matrices = update.reshape(-1, rows, update[0].numel())
                update = orthogonalize(matrices, pick_precision(weight.device)).reshape(update.shape)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.permute(0, 3, 1, 2), alpha=-0.2 * group["lr"] * max(matrices.shape[1:]) ** 0.5)


def orthogonalize(matrices, dtype=torch.float32, steps=5):
    """Matrices (B, M, N) with the same singular vectors and singular values of about 1 (0.7 to 1.2), by Newton-Schulz
    iteration: an odd polynomial of the matrix, computed with products only [7]."""
    x = matrices.to(dtype) / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7).to(dtype)
    for _ in range(steps):
        gram = x.bmm(x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


def make_optimizers(model, config):
    """Muon for the convolutions, AdamW without weight decay for the rest."""
    convolutions = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    return [Muon(convolutions, lr=config.lr, weight_decay=config.weight_decay),
            torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)]


class Schedule:
    """Progress of a training from 0 to 1: the fraction of the steps done or, if larger, the progress that the elapsed
    part of the time limit should have reached. Learning rate and crop size are functions of it."""

    def __init__(self, config, n_steps):
        self.step, self.n_steps, self.time_limited = 0, n_steps, False
        self.start, self.limit = time.monotonic(), math.inf                   # seconds
        self.edges = [0.0, *(until for until, _ in config.progressive), 1.0]  # progress where the crop size changes
        # Cost of a step relative to one with full-size crops; about a fifth does not depend on the size.
        cost = [0.2 + 0.8 * (crop_size(edge, config) / config.image_size) ** 2 for edge in self.edges[:-1]]
        self.work = np.cumsum([0.0, *(np.diff(self.edges) * cost)])           # at each edge

    def progress(self):
        """From 0 to 1; sets `time_limited` if the time limit determines it."""
        # By time there is none in the first 5 % of the limit, so that a slow start does not shorten the training.
        by_time = ((time.monotonic() - self.start) / max(self.limit, 1e-3) - 0.05) / 0.95
        by_time = np.interp(by_time * self.work[-1], self.work, self.edges)
        by_steps = (self.step + 1) / (self.n_steps + 1)
        self.time_limited |= bool(by_time > by_steps)
        return float(max(by_time, by_steps))

    def minutes_left(self):
        """Estimate from the time and the work so far, at most what is left of the time limit."""
        elapsed, work = time.monotonic() - self.start, np.interp(self.progress(), self.edges, self.work)
        return max(0.0, min(elapsed * (self.work[-1] / work - 1), self.limit - elapsed)) / 60


def learning_rate(progress, config):
    """Linear warm-up, then cosine decay to 0 at progress 1 [8]."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    return config.lr * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup))) / 2


def crop_size(progress, config):
    """Side of the crops in px: progressive resizing, below the full size in multiples of 32, the network's stride."""
    for until, fraction in config.progressive:
        if progress < until:
            return min(32 * max(1, round(fraction * config.image_size / 32)), config.image_size)
    return config.image_size


# ------------------------------------------------------------------------------------------------------------ training

class TrainState:
    """All that training updates, at its start; `counts` (K,): training photos of each class."""

    def __init__(self, classes, counts, config, device):
        torch.manual_seed(config.seed)
        self.model = to_device(BirdClassifier(classes, counts, config.image_size, config.dropout), device)
        self.ema_model, self.optimizers = copy.deepcopy(self.model), make_optimizers(self.model, config)
        self.schedule = Schedule(config, config.epochs * max(1, sum(counts) // config.batch_size))
        self.history, self.best = [], None  # metrics of each epoch; of the best also confusion matrix and EMA weights

    def state_dict(self):
        """A checkpoint, a dict."""
        return {"model": self.model.state_dict(), "ema_model": self.ema_model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.schedule.step, "seconds": time.monotonic() - self.schedule.start,
                "time_limited": self.schedule.time_limited, "history": self.history, "best": self.best}

    def load_state_dict(self, checkpoint):
        """Restores a checkpoint; the time that its training took counts."""
        self.model.load_state_dict(checkpoint["model"])
        self.ema_model.load_state_dict(checkpoint["ema_model"])
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(saved)
        self.schedule.step, self.schedule.time_limited = checkpoint["step"], checkpoint["time_limited"]
        self.schedule.start -= checkpoint["seconds"]
        self.history, self.best = checkpoint["history"], checkpoint["best"]


@torch.no_grad()
def update_ema(ema_model, model, decay):
    """ema <- decay * ema + (1 - decay) * model, for weights and running statistics [9]."""
    for ema, new in zip((*ema_model.parameters(), *ema_model.buffers()), (*model.parameters(), *model.buffers())):
        if ema.is_floating_point():
            ema.lerp_(new, 1 - decay)


def train_one_epoch(model, ema_model, optimizers, loader, schedule, config, generator):
    """Trains on the loader's batches until progress is 1. Returns a dict: train_loss, train_accuracy, lr (the last) and
    photos_per_second. Raises InputError if the loss is not finite."""
    device, start, n_photos, sums = model.head.weight.device, time.monotonic(), 0, 0.0
    weights = balanced_weights(model.metadata["counts"]).to(device) if config.class_weights else None
    model.train()
    for photos, labels in loader:
        progress = schedule.progress()
        lr, labels = learning_rate(progress, config), labels.to(device)
        photos = photos.to(augmentation_device(device))
        photos = augment(photos, crop_size(progress, config), config, generator).to(device)
        targets = F.one_hot(labels, model.head.out_features).float()
        if progress < config.mix_until:
            photos, targets = mix(photos, targets, config, generator)
        with autocast(device):
            logits = model(photos)
        loss = F.cross_entropy(logits, targets, weights, label_smoothing=config.label_smoothing)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        schedule.step += 1
        update_ema(ema_model, model, min(config.ema_decay, schedule.step / (schedule.step + 9)))
        accuracy = (logits.argmax(1) == labels).float().mean()
        sums, n_photos = sums + len(labels) * torch.stack([loss.detach(), accuracy]), n_photos + len(labels)
        if schedule.progress() >= 1:
            break
    loss, accuracy = (sums / n_photos).tolist()
    if not math.isfinite(loss):
        raise InputError(f"bird.py: expected a training that converges, found the loss {loss}")
    return {"train_loss": loss, "train_accuracy": accuracy, "lr": lr,
            "photos_per_second": n_photos / (time.monotonic() - start)}


def score(row):
    """Sort key of the epochs: crop size, because weights selected at a smaller one score lower at test; validation
    loss, because F1 on few photos hardly tells the last epochs apart."""
    return row["crop_size"], -row["val_loss"]


def train_classifier(state, dataset, train_idx, val_idx, config):
    """Trains until the schedule or early stopping ends it. Generator: yields the new entry of state.history after each
    epoch, whose randomness depends only on the seed and its number."""
    torch.backends.cudnn.benchmark = True  # batches have few shapes
    generator = torch.Generator()
    train_loader = batches(dataset, train_idx, min(config.batch_size, len(train_idx)), generator)
    val_loader, schedule, history = batches(dataset, val_idx), state.schedule, state.history

    while not history or (schedule.progress() < 1 and config.patience > sum(
            row["crop_size"] == config.image_size for row in history[state.best["epoch"]:])):
        start, epoch = time.monotonic(), len(history) + 1
        generator.manual_seed(config.seed + 7919 * epoch)
        torch.manual_seed(config.seed + 7919 * epoch)  # dropout
        row = train_one_epoch(state.model, state.ema_model, state.optimizers, train_loader, schedule, config, generator)
        size = crop_size(schedule.progress(), config)
        val_loss, matrix = evaluate(state.ema_model, val_loader, size)
        history.append({
            "epoch": epoch, "crop_size": size, **row, "val_loss": val_loss, "val_f1": average_f1(matrix),
            "val_accuracy": (matrix.diagonal().sum() / matrix.sum()).item(), "seconds": time.monotonic() - start})
        if state.best is None or score(history[-1]) > score(state.best):
            weights = {key: value.to("cpu", copy=True) for key, value in state.ema_model.state_dict().items()}
            state.best = {**history[-1], "confusion": matrix.tolist(), "weights": weights}
        yield history[-1]


# ---------------------------------------------------------------------------------------------------------- evaluation

def center_crop(photos, fraction, size, device):
    """Photos uint8 (B, 3, S, S) -> the middle `fraction` of their sides, float32 (B, 3, size, size) in [0, 1]."""
    margin = round((1 - fraction) / 2 * photos.shape[-1])
    photos = photos[:, :, margin:photos.shape[2] - margin, margin:photos.shape[3] - margin]
    photos = photos.to(augmentation_device(device)).float().div_(255)
    return F.interpolate(photos, (size, size), mode="bilinear", align_corners=False, antialias=True).to(device)


@torch.no_grad()
def predict_proba(model, photos, views=TEST_VIEWS, size=None):
    """Photos uint8 (B, 3, S, S) -> class probabilities (B, K) on the CPU, averaged over `views` of `size` px (default:
    the model's image size). The model is in evaluation mode."""
    device, total = model.head.weight.device, 0.0
    for fraction, flipped in views:
        x = center_crop(photos, fraction, size or model.metadata["image_size"], device)
        with autocast(device):
            total = total + model(x.flip(3) if flipped else x).softmax(1)
    return (total / len(views)).cpu()


def evaluate(model, loader, size):
    """Class-weighted cross-entropy (nats) and confusion matrix (K, K) on the loader's photos, one view of `size` px."""
    model.eval()
    outputs = [(predict_proba(model, photos, TEST_VIEWS[:1], size), labels) for photos, labels in loader]
    probabilities, labels = torch.cat([p for p, _ in outputs]), torch.cat([label for _, label in outputs])
    log_proba = probabilities.clamp(min=1e-30).log()  # finite
    loss = F.nll_loss(log_proba, labels, balanced_weights(model.metadata["counts"]))
    return loss.item(), confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])


def confusion_matrix(labels, predicted, n_classes):
    """Counts (K, K): rows are the true classes, columns the predicted ones."""
    return torch.bincount(labels * n_classes + predicted, minlength=n_classes ** 2).view(n_classes, n_classes)


def average_f1(matrix):
    """(macro F1 + micro F1) / 2 of a confusion matrix (K, K), as scikit-learn computes them: classes that are neither
    present nor predicted do not count."""
    tp, total = matrix.diagonal().double(), (matrix.sum(0) + matrix.sum(1)).double()  # (K,): TP and 2 TP + FP + FN
    return ((2 * tp / total)[total > 0].mean() + tp.sum() / matrix.sum()).item() / 2


def classify(model, paths, views=TEST_VIEWS, batch_size=128):
    """Labels int64 (N,) of photo files, and the indices of those that cannot be read, which get the most frequent class
    of the training photos."""
    model.eval()
    labels, unreadable, size = np.empty(len(paths), np.int64), [], round(DECODED_SIZE * model.metadata["image_size"])
    for start in range(0, len(paths), batch_size):
        photos, failed = decode_photos(paths[start:start + batch_size], size)
        labels[start:start + batch_size] = predict_proba(model, photos, views).argmax(1).numpy()
        unreadable += [start + i for i in failed]
    labels[unreadable] = np.argmax(model.metadata["counts"])
    return labels, unreadable


# ---------------------------------------------------------------------------------------------------------------- data

class PhotoDataset(Dataset):
    """Decoded photos uint8 (N, 3, S, S), a tensor or PhotosOnDisk, and labels (N,). dataset[list of indices] is a batch
    of both."""

    def __init__(self, photos, labels):
        self.photos, self.labels = photos, torch.as_tensor(labels, dtype=torch.long)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        index = torch.as_tensor(index)
        return self.photos[index], self.labels[index]


class PhotosOnDisk:
    """Photos uint8 (N, 3, S, S) in a temporary file. Written as a file, because writing through a memory map crashes on
    a full disk; mapped for each batch, because pages once read count as memory while the map exists."""

    def __init__(self, shape):
        self.shape, self.file = shape, tempfile.TemporaryFile()

    def __setitem__(self, i, photo):
        self.file.seek(i * photo.numel())
        self.file.write(photo.numpy())
        self.file.flush()

    def __getitem__(self, index):
        return torch.from_numpy(np.memmap(self.file, np.uint8, "r", shape=self.shape)[index.numpy()])


def batches(dataset, index, batch_size=128, generator=None):
    """DataLoader of (photos uint8 (B, 3, S, S), labels (B,)) at `index`, in order or, given a generator, shuffled with
    drop_last."""
    index = [int(i) for i in index]
    sampler = index if generator is None else SubsetRandomSampler(index, generator)
    sampler = BatchSampler(sampler, batch_size, drop_last=generator is not None)
    return DataLoader(dataset, sampler=sampler, batch_size=None)  # a batch is read and augmented at once


def stratified_split(labels, fraction, seed):
    """Sorted indices of the training and of the validation photos, about `fraction` of each class's and in total at
    least as many as classes; a class's only photo is trained on."""
    from sklearn.model_selection import train_test_split  # its import takes a second, which test does not need
    labels, index = np.asarray(labels), np.arange(len(labels))
    splittable = np.bincount(labels)[labels] > 1                          # (N,)
    if not splittable.any():
        return index, index[:0]
    n_val = max(round(fraction * splittable.sum()), len(np.unique(labels[splittable])))
    val_idx = train_test_split(index[splittable], test_size=n_val, stratify=labels[splittable], random_state=seed)[1]
    return np.setdiff1d(index, val_idx), np.sort(val_idx)


def walk(folder, parents=()):
    """(folder, sorted names of its folders, and of its photos) for a folder and all below it, as os.walk(followlinks=
    True) finds them, without hidden ones. A link to a folder that contains it is skipped. Raises OSError."""
    real_path = os.path.join(os.path.realpath(folder), "")
    if any(parent.startswith(real_path) for parent in parents):
        return
    names = sorted(name for name in os.listdir(folder) if not name.startswith(HIDDEN))
    os.stat(os.path.join(folder, "."))  # raises PermissionError where isdir() would return False
    folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    yield folder, folders, [name for name in names if name.lower().endswith(IMG_EXTENSIONS) and name not in folders]
    for name in folders:
        yield from walk(os.path.join(folder, name), (*parents, real_path))


def list_photos(dataset):
    """Class names, sorted as strings, and (path, class index) of each photo, in the order of torchvision's ImageFolder;
    a class without photos keeps its index. Raises InputError for a folder that cannot be read, because the rows of all
    further photos would shift."""
    try:
        _, classes, _ = next(walk(dataset))
        parents = (os.path.join(os.path.realpath(dataset), ""),)
        folders = [sorted(walk(os.path.join(dataset, name), parents)) for name in classes]
    except OSError as error:
        raise InputError(f"{error.filename}: expected a readable folder, found: {error.strerror}") from None
    if classes and {name.lower() for name in classes} <= {"train", "training", "test", "val", "valid", "validation"}:
        raise InputError(f"{dataset}: expected class folders, found {join_names(classes)}: name one of these")
    return classes, [(os.path.join(folder, name), label) for label, below in enumerate(folders)
                     for folder, _, names in below for name in names]


def list_test_photos(path):
    """Class names and (path, class index or None) of the photos of class folders, of a folder of photos or of one
    photo. Raises InputError if there are none."""
    if os.path.isfile(path) and path.lower().endswith(IMG_EXTENSIONS):
        return [], [(path, None)]
    classes, photos = list_photos(path)
    without_class = next(walk(path))[2]
    if photos and without_class:
        warn(f"{path}: photos next to the class folders get no row, as in ImageFolder: {join_names(without_class)}")
    if not photos and not without_class:
        raise InputError(f"{path}: expected photos ({' '.join(IMG_EXTENSIONS)}), found none")
    return (classes, photos) if photos else ([], [(os.path.join(path, name), None) for name in without_class])


def decode_photo(path, size):
    """Photo of any format and size -> uint8 (3, size, size), RGB, EXIF orientation applied, resized to a square. As far
    as possible truncated files are decoded. Raises Pillow's errors, mostly OSError, and that of to_8_bits."""
    if not os.path.isfile(path):  # opening a named pipe would wait forever
        raise OSError("not a regular file")
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    with Image.open(path) as image:
        image.draft(None, (size, size))  # the JPEG decoder scales down while it decodes
        with contextlib.suppress(Exception):  # a corrupt EXIF block must not make the photo unreadable
            if image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            image = to_8_bits(image)
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB").resize((size, size), Image.BICUBIC, reducing_gap=3.0)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def to_8_bits(image):
    """Gray image of integers (modes I and I;16) or floats (mode F) -> mode L. The level of white is not stored; it is
    the least of 1 (floats only), 255, 4095 and 65535 that no pixel exceeds. Raises ValueError for other values."""
    pixels, levels = np.array(image, np.float32), (1, 255, 4095, 65535)[image.mode != "F":]
    white = next((level for level in levels if pixels.max() <= 1.1 * level), None)  # resampling may exceed it a little
    if white is None or pixels.min() < -0.1 * white:  # None also for NaN
        raise ValueError(f"values from {pixels.min()} to {pixels.max()}")
    if "transparency" in image.info:
        pixels[pixels == image.info["transparency"]] = white
    return Image.fromarray((pixels * (255 / white)).clip(0, 255).round().astype(np.uint8))


def decode_photos(paths, size, device="cpu"):
    """Photo files -> photos uint8 (N, 3, size, size), a tensor or, above MAX_IN_MEMORY, PhotosOnDisk; and the indices
    of the files that cannot be read, whose photos are black. Raises InputError on a full disk."""
    def decode(path):
        try:
            return decode_photo(path, size)
        except Exception:  # corrupt files raise many exception types
            return None

    shape, unreadable = (len(paths), 3, size, size), []
    try:
        in_memory = math.prod(shape) <= MAX_IN_MEMORY
        photos = torch.empty(shape, dtype=torch.uint8, device=device) if in_memory else PhotosOnDisk(shape)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for start in range(0, len(paths), 256):  # not all at once: the pool would hold all results
                for i, photo in enumerate(pool.map(decode, paths[start:start + 256]), start):
                    if photo is None:
                        unreadable.append(i)
                        photo = np.zeros(shape[1:], np.uint8)
                    photos[i] = torch.from_numpy(photo)
    except OSError as error:
        raise InputError(f"temporary folder: expected room for {math.prod(shape) / 1e9:.1f} GB of photos, found: "
                         f"{error.strerror}") from None
    return photos, unreadable


# -------------------------------------------------------------------------------------------------------------- device

def pick_device(name):
    """torch.device of a --device option; `auto` is the best that works. An outdated driver, or a GPU without kernels in
    this torch, only fails at the first operation. Raises InputError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    for device in [key for key in available if available[key]] if name == "auto" else [name]:
        try:
            x = torch.ones(8, 8, device=device)
            if F.conv2d((x @ x)[None, None], x[None, None, :3, :3]).sum().item() == 36 * 9 * 8:
                return x.device
            reason = "it computes wrong sums"
        except (RuntimeError, AssertionError) as error:
            reason = printable(error)[:200]
        if name != "auto":
            raise InputError(f"bird.py: expected an available --device, found '{name}': {reason}")
        warn(f"{device} is available but failed: {reason}")


@functools.lru_cache(maxsize=None)  # called at every step
def pick_precision(device):
    """dtype of the network's arithmetic: bfloat16 where the hardware has it, else float32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    if device.type == "cpu":
        with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
            if {"avx512_bf16", "amx_bf16"} & set(file.read().split()):
                return torch.bfloat16
    return torch.float32


def autocast(device):
    """Context in which the network computes in the device's precision."""
    dtype = pick_precision(device)  # MPS, which not every torch can autocast, has float32
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


def to_device(model, device):
    """The model on this device, in the memory format that is fastest there. On MPS batch norms in channels_last have
    wrong gradients (pytorch/pytorch#175189)."""
    memory_format = torch.contiguous_format if device.type == "mps" else torch.channels_last
    return model.to(device, memory_format=memory_format)


def augmentation_device(device):
    """Where photos are cropped and resized: MPS lacks some of the sampling."""
    return device if device.type == "cuda" else torch.device("cpu")


# --------------------------------------------------------------------------------------------------------- checkpoints

def load_tensors(path, expected):
    """The dict of tensors and plain values in a file that torch.save wrote. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content.items())
    except Exception:  # corrupt files raise many exception types; torch's messages advise to load without checks
        found = "a corrupt file or other content" if os.path.isfile(path) else "no file"
        raise InputError(f"{path}: expected {expected}, found {found}") from None


def load_model(path):
    """The BirdClassifier of a `bird.pth`, on the CPU, in evaluation mode. Raises InputError."""
    expected = "the state_dict of this script's BirdClassifier"
    model, state = BirdClassifier(), load_tensors(path, expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of complex values
            model.load_state_dict(state)
    except Exception:  # torch's message lists every tensor
        raise InputError(f"{path}: expected {expected}, found that of another network") from None
    for key, value in model.state_dict().items():
        if state[key].is_complex() or not value.isfinite().all() or "running_var" in key and (value < 0).any():
            raise InputError(f"{path}: expected {expected}, found non-finite, complex or negative values in {key}")
    return model.to(memory_format=torch.channels_last).eval()


def serialized(content):
    """Bytes of torch.save, which to a file raises RuntimeError on a full disk and stores the file's name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def check_output(path, *others):
    """Raises InputError unless a file can be written at `path` without overwriting `others` or a photo."""
    real, found = os.path.realpath(path), None
    if real in map(os.path.realpath, (*others, __file__)) or path.lower().endswith(IMG_EXTENSIONS):
        found = "an input, another output or the name of a photo"
    elif os.path.exists(real) and not os.path.isfile(real):
        found = "a folder or a device"
    else:
        try:
            os.close(os.open(f"{real}.{os.getpid()}.tmp", os.O_CREAT | os.O_WRONLY))
            os.remove(f"{real}.{os.getpid()}.tmp")
        except OSError as error:
            found = error.strerror
    if found:
        raise InputError(f"{path or repr(path)}: expected a path to write to, found: {found}")


def write_files(contents):
    """Atomic write of {path: bytes}: temporary files, then renames."""
    temporary = {path: f"{os.path.realpath(path)}.{os.getpid()}.tmp" for path in contents}
    try:
        for path, content in contents.items():
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], os.path.realpath(path))
    except OSError as error:
        raise InputError(f"{path}: expected to write the file, found: {error.strerror}") from None
    finally:
        for name in filter(os.path.exists, temporary.values()):
            os.remove(name)


# -------------------------------------------------------------------------------------------------------- command line

def parse_arguments(argv):
    """Arguments of the command line. Raises InputError."""
    def fail(message):
        raise InputError(f"bird.py: expected 'DATASET train MODEL' or 'DATASET test MODEL' (--help), found: {message}")

    commands = "\n".join(["", "    python bird.py DATASET train bird.pth", "    python bird.py DATASET test bird.pth"])
    parser = argparse.ArgumentParser(prog="bird.py", usage=commands, allow_abbrev=False)
    parser.error, add = fail, parser.add_argument
    add("dataset", help="folder of class folders of photos; for test also a folder of photos, or one photo")
    add("mode", help="train (writes the model and its _history.json) or test (writes bird.csv)")
    add("model", help="model file, bird.pth")
    add("--epochs", type=int, default=Config.epochs, help="passes over the training photos (default %(default)s)")
    add("--minutes", type=float, default=110, help="time limit of train (default %(default)s): the schedule is "
        "shortened to fit; the result is then not reproducible to the byte")
    add("--image-size", type=int, default=Config.image_size, metavar="PX",
        help="side of the largest crops (default %(default)s)")
    add("--device", default="auto", help="cpu, cuda or mps (default: the best available)")
    add("--seed", type=int, default=0, help="random seed of the training (default 0)")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--resume", action="store_true", help="continue an interrupted training after its last epoch")
    add("--output", metavar="FILE", default="bird.csv", help="instead of bird.csv")
    add("--quiet", action="store_true", help="print only errors and warnings")
    args, modes = parser.parse_args(argv), ("train", "test")
    if args.mode not in modes and args.dataset in modes:  # some graders put the mode first
        args.dataset, args.mode = args.mode, args.dataset
    if args.mode not in modes:
        fail(args.mode)
    for name, value, low, high in (("epochs", args.epochs, 1, 10 ** 6), ("minutes", args.minutes, 0.01, 10 ** 6),
                                   ("image-size", args.image_size, 32, 1024), ("seed", args.seed, 0, 2 ** 31 - 1),
                                   ("threads", 1 if args.threads is None else args.threads, 1, 1024)):
        if not low <= value <= high:
            raise InputError(f"bird.py: expected --{name} from {low} to {high:,}, found {value}")
    return args


def train_command(args, log):
    start, base = time.monotonic(), os.path.splitext(args.model)[0]
    history_path, checkpoint_path = f"{base}_history.json", f"{base}_checkpoint.pth"
    for path, others in (args.model, ()), (history_path, (args.model,)), (checkpoint_path, (args.model,)):
        check_output(path, *others)
    device, (classes, photos) = pick_device(args.device), list_photos(args.dataset)
    names = [os.path.relpath(path, args.dataset).replace(os.sep, "/") for path, _ in photos]
    config = dataclasses.replace(Config(), seed=args.seed, epochs=args.epochs, image_size=args.image_size)
    settings = dataclasses.asdict(config)
    with open(__file__, "rb") as script:  # the checkpoint of another version may not fit
        key = hashlib.sha256(json.dumps([settings, WIDTHS, classes, names]).encode() + script.read()).hexdigest()
    checkpoint = None
    if args.resume and os.path.exists(checkpoint_path):
        checkpoint = load_tensors(checkpoint_path, "the checkpoint of an interrupted training")
        if checkpoint.get("key") != key:
            raise InputError(f"{checkpoint_path}: expected a checkpoint of the same photos, settings and script, found "
                             "another; without --resume training restarts from scratch")
        log(f"{checkpoint_path}: resumed after epoch {len(checkpoint['history'])}")
    elif args.resume or os.path.exists(checkpoint_path):
        warn(f"{checkpoint_path}: " + ("no checkpoint to resume; training starts from scratch" if args.resume
                                       else "a checkpoint that training overwrites without --resume"))

    decoded, unreadable = decode_photos([path for path, _ in photos], round(DECODED_SIZE * config.image_size),
                                        augmentation_device(device))
    dataset = PhotoDataset(decoded, [label for _, label in photos])
    if unreadable:
        warn(f"{len(unreadable)} of {len(photos)} photos cannot be read and are left out: "
             f"{join_names(photos[i][0] for i in unreadable)}")
    readable = np.setdiff1d(np.arange(len(photos)), unreadable)
    labels = dataset.labels.numpy()[readable]
    empty = np.bincount(labels, minlength=len(classes)) == 0
    if (~empty).sum() < 2:
        raise InputError(f"{args.dataset}: expected readable photos in at least two class folders, found them in "
                         f"{(~empty).sum()} of {len(classes)}")
    if empty.any():
        warn(f"{args.dataset}: no readable photos of {join_names(np.array(classes)[empty])}; the indices stay")
    train_idx, val_idx = (readable[part] for part in stratified_split(labels, config.val_fraction, config.seed))
    if len(val_idx) == 0:
        warn("too few photos for a validation set: validated on the training photos")
        val_idx = train_idx
    counts = np.bincount(dataset.labels[train_idx], minlength=len(classes)).tolist()
    state, precision = TrainState(classes, counts, config, device), str(pick_precision(device))[len("torch."):]
    n_parameters = sum(p.numel() for p in state.model.parameters())
    log(f"{len(train_idx)} training and {len(val_idx)} validation photos, {len(classes)} classes; {n_parameters:,} "
        f"parameters, on {device} in {precision}")

    for few in val_idx[:1], val_idx[:128]:  # time for the last validation is reserved; the first call is slower
        before = time.monotonic()
        evaluate(state.ema_model, batches(dataset, few), config.image_size)
    reserved = 1.5 * (time.monotonic() - before) * len(val_idx) / len(few)  # photos on disk take longer
    state.schedule.limit = start + 60 * args.minutes - reserved - state.schedule.start
    if checkpoint:
        state.load_state_dict(checkpoint)
    for row in train_classifier(state, dataset, train_idx, val_idx, config):
        try:
            write_files({checkpoint_path: serialized({**state.state_dict(), "key": key})})
        except InputError as error:
            warn(f"{error}; training continues without a checkpoint")
        log(f"epoch {row['epoch']:3}/{config.epochs}  {state.schedule.minutes_left():.1f} min left  val F1 "
            f"{row['val_f1']:.4f}{'*' if row['epoch'] == state.best['epoch'] else ' '} loss {row['val_loss']:.3f} acc "
            f"{row['val_accuracy']:.3f}  train loss {row['train_loss']:.3f} acc {row['train_accuracy']:.3f}  "
            f"{row['photos_per_second']:.0f} photos/s", state.schedule.progress())

    minutes = (time.monotonic() - start + (checkpoint["seconds"] if checkpoint else 0)) / 60
    n_epochs, best, time_limited = len(state.history), state.best, state.schedule.time_limited
    record = {
        "settings": settings, "classes": classes, "counts": counts, "parameters": n_parameters, "device": str(device),
        "precision": precision, "torch": torch.__version__, "threads": torch.get_num_threads(), "minutes": minutes,
        "time_limited": time_limited, "best_epoch": best["epoch"], "test_views": TEST_VIEWS,
        "split": {name: [names[i] for i in index] for name, index in (
            ("train", train_idx), ("validation", val_idx), ("unreadable", unreadable))},
        "validation": {"average_f1": best["val_f1"], "confusion": best["confusion"]}, "epochs": state.history}
    write_files({args.model: serialized(best["weights"]), history_path: (json.dumps(record, indent=1) + "\n").encode()})
    with contextlib.suppress(OSError):
        os.remove(checkpoint_path)
    if state.schedule.progress() < 1:
        log(f"early stopping after {n_epochs} epochs, {config.patience} without a lower validation loss")
    if time_limited:
        log(f"--minutes {args.minutes:g} shortened the schedule of {config.epochs} epochs: the result is not "
            "reproducible to the byte")
    if minutes > args.minutes:
        warn(f"training took {60 * minutes:.1f} s, --minutes {args.minutes:g} allows {60 * args.minutes:.1f} s: all "
             "photos are read, one step and one validation made in any case")
    log(f"wrote {args.model}, of epoch {best['epoch']} of {n_epochs}, and {history_path} after {minutes:.1f} min: "
        f"validation F1 {best['val_f1']:.4f} on {len(val_idx)} photos")


def test_command(args, log):
    check_output(args.output, args.model)
    model, (classes, photos) = load_model(args.model), list_test_photos(args.dataset)
    device, known = pick_device(args.device), {nfc(name): i for i, name in enumerate(model.metadata["classes"])}
    unknown = sorted(set(map(nfc, classes)) - set(known))
    if unknown:
        warn(f"{args.dataset}: class folders that are not in the training data: {join_names(unknown)}; labels are "
             f"indices of the training classes ({join_names(known, 12)})")
    labels, unreadable = classify(to_device(model, device), [path for path, _ in photos])
    if unreadable:
        warn(f"{len(unreadable)} of {len(photos)} photos cannot be read and get the label {labels[unreadable[0]]}, the "
             f"most frequent class: {join_names((photos[i][0] for i in unreadable), 20)}")
    write_files({args.output: ("Predicted_Label\n" + "".join(f"{label}\n" for label in labels)).encode()})
    log(f"wrote {args.output}: {len(labels)} labels")
    if classes and not unknown:
        truth = torch.tensor([known[nfc(classes[label])] for _, label in photos])
        matrix = confusion_matrix(truth, torch.from_numpy(labels), len(model.metadata["classes"]))
        log(f"average F1 {average_f1(matrix):.4f} with the folders as true classes")


def nfc(name):
    return unicodedata.normalize("NFC", name)  # macOS may list names decomposed: other strings that look the same


def join_names(items, most=5):
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def warn(text):
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def printable(text):
    """Text as one line for a terminal: other characters become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def is_terminal(stream):
    return stream is not None and stream.isatty()  # None: closed


def print_line(line, progress=None):
    """Prints a line; on a terminal with `progress`, from 0 to 1, as a progress bar, which the next line replaces."""
    try:
        width = shutil.get_terminal_size().columns - 1 if is_terminal(sys.stdout) else 0
        if width and progress is not None:
            line = f"{progress:4.0%} [{'=' * round(10 * progress):10}] {line}"[:width]
        print(line.ljust(width), end="\r" if width and progress is not None else "\n", flush=True)
    except OSError:  # a closed pipe or a full disk behind stdout must not abort training
        sys.stdout = open(os.devnull, "w")


def interrupt(number, frame):
    for other in (signal.SIGINT, signal.SIGTERM):  # a second one would interrupt the cleanup
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def main(argv=None):
    """Runs one command; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    warnings.formatwarning = lambda message, *_, **__: (  # on a terminal, over a progress bar
        "\x1b[K" * is_terminal(sys.stderr) + f"bird.py: warning: {printable(message)}\n")
    warnings.filterwarnings("ignore", module="PIL")
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # class names may have characters that a terminal lacks
    hint = ""
    try:
        args = parse_arguments(sys.argv[1:] if argv is None else argv)
        torch.manual_seed(0)  # required by the assignment; --seed replaces it in training
        if args.threads:
            torch.set_num_threads(args.threads)
        hint = "; --resume continues after the last finished epoch" if args.mode == "train" else ""
        command = train_command if args.mode == "train" else test_command
        command(args, (lambda *_: None) if args.quiet else print_line)
        return 0
    except KeyboardInterrupt as error:
        after_bar = "\n" * (is_terminal(sys.stdout) and is_terminal(sys.stderr))
        print(f"{after_bar}bird.py: interrupted{hint}", file=sys.stderr)
        return 128 + error.args[0]
    except (InputError, MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("alloc", "out of memory"))
        if not isinstance(error, InputError) and not short:
            raise
        prefix = "" if isinstance(error, InputError) else "bird.py: expected enough memory for these photos, found: "
        print("\x1b[K" * is_terminal(sys.stderr) + prefix + printable(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all files are written; torch's own exit would print a traceback
    sys.exit(code)
