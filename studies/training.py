"""What the studies share of training: Lightning's Trainer with their flags, a LightningModule that logs its losses."""
import contextlib
import io
import logging
import math
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import bird
from common.errors import InputError, one_line
from common.files import write_files

MIN_ROWS = 8  # a smaller last batch is left out of its epoch: batch normalisation needs several images


class StudyModule(L.LightningModule):
    """A model with its losses. `history` has a dict an epoch: "epoch", "seconds" and of each loss train_NAME, the mean
    over the epoch, and test_NAME, the mean over the held-out images after it."""
    name, about, seed = "", {}, 0  # set by Run.fit
    strategy = None                # of several processes, where the one asked for does not do

    def __init__(self):
        super().__init__()
        self.history = []

    def losses(self, x, y):
        """{"loss": the scalar that is minimised, other names: scalars} of images (B, C, H, W) and labels (B,)."""

    def training_step(self, batch, index):
        losses = self.losses(*batch)
        self.log_losses("train", losses, len(batch[0]))
        return losses["loss"]

    def validation_step(self, batch, index):
        self.log_losses("test", self.losses(*batch), len(batch[0]))

    def log_losses(self, part, losses, n):
        """Takes the losses of a batch of n images into the epoch's mean."""
        self.log_dict({f"{part}_{name}": value.detach() for name, value in losses.items()}, batch_size=n,
                      on_step=False, on_epoch=True, sync_dist=self.trainer.world_size > 1)

    def on_train_epoch_start(self):
        self._began = time.monotonic()
        # An epoch's noise depends on seed and epoch alone, so that a resumed training is the uninterrupted one.
        seed = ((self.seed * 1000 + self.current_epoch) * 1000 + self.global_rank) % 2 ** 32  # the largest allowed
        L.seed_everything(seed, verbose=False)

    def on_validation_epoch_start(self):
        L.seed_everything(self.seed, verbose=False)  # the same noise after every epoch

    def on_train_epoch_end(self):
        epoch, last = self.current_epoch + 1, self.trainer.max_epochs
        row = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if not all(map(math.isfinite, row.values())):
            raise InputError(f"{self.name}: expected losses that are numbers, found {row} in epoch {epoch}; the "
                             "training has diverged")
        self.history.append({"epoch": epoch, "seconds": time.monotonic() - self._began, **row})
        if epoch % 5 == 0 or epoch == last:
            shown = [name for name in ("train_loss", "test_loss") if name in row] or row
            self.print(f"{self.name}: epoch {epoch}/{last}", *(f" {name} {row[name]:.4g}" for name in shown),
                       file=sys.stderr)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["history"], checkpoint["about"] = self.history, self.about

    def on_load_checkpoint(self, checkpoint):
        self.history = checkpoint["history"]

    def curve(self, name):
        """[value by epoch] of a logged loss such as "train_loss"."""
        return [row[name] for row in self.history]

    def curves(self, loss, model=""):
        """{"training MODEL": [value by epoch], "held-out MODEL": ...} of one of the losses."""
        return {f"training {model}".strip(): self.curve(f"train_{loss}"),
                f"held-out {model}".strip(): self.curve(f"test_{loss}")}

    @property
    def seconds(self):
        """Duration of the training, all parts together."""
        return sum(row["seconds"] for row in self.history)


class WholeFiles(TorchCheckpointIO):
    """Atomic write of a checkpoint: temporary file, then rename."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_files({str(path): buffer.getvalue()})


class ImageData(L.LightningDataModule):
    """Batches of data.Images, those to train on in an order by seed and epoch alone; all processes share a batch."""

    def __init__(self, train, test, batch_size, seed):
        super().__init__()
        self.train, self.test, self.batch_size, self.seed = train, test, batch_size, seed

    def _loader(self, images, shuffle):
        batch_size = max(1, self.batch_size // self.trainer.world_size)
        sampler = DistributedSampler(images, self.trainer.world_size, self.trainer.global_rank, shuffle, self.seed)
        few = len(sampler) > batch_size and 0 < len(sampler) % batch_size < MIN_ROWS  # in the last batch
        return DataLoader(images, batch_size, sampler=sampler, collate_fn=lambda batch: batch,
                          drop_last=shuffle and few, generator=torch.Generator())

    def train_dataloader(self):
        return self._loader(self.train, True)

    def val_dataloader(self):
        return self._loader(self.test, False)


class Run:
    """Where and how a study trains: the flags of Lightning's Trainer and a folder. Raises InputError."""

    def __init__(self, folder, device="auto", devices=1, num_nodes=1, strategy="auto", precision="32-true",
                 resume=False):
        try:
            self.device = bird.pick_device(device)
        except bird.InputError:
            raise InputError(f"--device: expected one that is here, found {device}") from None
        if self.device.type == "cpu" and devices > max(2, os.cpu_count()):
            raise InputError(f"--devices: expected at most {max(2, os.cpu_count())} here, found {devices}")
        if num_nodes > 1 and not {"RANK", "SLURM_PROCID", "NODE_RANK"} & set(os.environ):
            raise InputError(f"--num-nodes: expected torchrun or srun to start the command on each of {num_nodes} "
                             "machines, found neither")
        self.folder, self.resume, self.precision = Path(folder), resume, precision
        self.processes = devices * num_nodes
        self.flags = {"accelerator": {"cuda": "gpu"}.get(self.device.type, self.device.type), "devices": devices,
                      "num_nodes": num_nodes, "strategy": strategy, "precision": precision}
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: expected a folder for the results, found: {one_line(error)}") from None
        for part in ("pytorch", "fabric"):
            logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning.*")  # advice on workers and logging intervals

    @property
    def leads(self):
        """Whether this process is the one that measures and writes."""
        return (rank_zero_only.rank or 0) == 0

    def fit(self, name, module, train, test=None, *, epochs, batch_size, seed=0, callbacks=()):
        """Trains a StudyModule on data.Images and returns it in evaluation mode. After each epoch the whole state is in
        FOLDER/checkpoints/NAME.ckpt, from which --resume continues. Raises InputError."""
        path, module.name, module.seed = self.folder / "checkpoints" / f"{name}.ckpt", name, seed
        module.about = {**module.hparams, "batch_size": batch_size, "images": len(train), "seed": seed}
        found, several = str(path) if self.resume and path.exists() else None, self.processes > 1
        if found:
            self._check(path, module.about, epochs)
        elif self.leads:
            shutil.rmtree(self.folder / "logs" / name, ignore_errors=True)
            path.unlink(missing_ok=True)
        if self.device.type == "mps":  # batch norms in channels_last get wrong gradients there: pytorch/pytorch#175189
            module.to(memory_format=torch.contiguous_format)
        flags = {**self.flags, "strategy": module.strategy or self.flags["strategy"]} if several else self.flags
        try:
            trainer = L.Trainer(
                **flags, max_epochs=epochs, logger=CSVLogger(self.folder / "logs", name),
                callbacks=[*callbacks, ModelCheckpoint(
                    path.parent, name, save_on_train_epoch_end=True, enable_version_counter=False)],
                plugins=[WholeFiles()], enable_progress_bar=sys.stdout.isatty(), enable_model_summary=False,
                num_sanity_val_steps=0, limit_val_batches=1.0 if test is not None else 0,
                use_distributed_sampler=False, sync_batchnorm=self.device.type == "cuda" and several)
        except Exception as error:  # each precision has its own
            raise InputError("--precision, --devices: expected what Lightning's Trainer takes, found: "
                             f"{one_line(error)}") from None
        self.precision = trainer.precision  # which may be another than asked for: a CPU has no float16
        with contextlib.suppress(SystemExit):  # what Lightning makes of Ctrl-C since version 2.4
            trainer.fit(module, datamodule=ImageData(train, test, batch_size, seed), ckpt_path=found)
        if trainer.interrupted:
            raise KeyboardInterrupt
        return module.to(self.device, torch.float32).eval()

    def _check(self, path, about, epochs):
        """Raises InputError where a checkpoint is not of the training that is asked for."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of pickles
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            there, epoch = checkpoint["about"], checkpoint["epoch"] + 1
            why = [f"{key} {asked} as asked, found a training with {there.get(key)}"
                   for key, asked in about.items() if there.get(key) != asked]
            why += [f"at most {epochs} epochs as asked, found {epoch}"] * (epoch > epochs)
        except Exception as error:  # corrupt files and pickled objects raise many exception types
            why = [f"a checkpoint of this study, found: {one_line(str(error).split('. ')[0])}"]  # then comes bad advice
        if why:
            raise InputError(f"{path}: expected {why[-1]}; start without --resume")


@torch.no_grad()
def mapped(function, x, batch_size=1000):
    """function over a tensor (N, ...) in batches, as float32 on the CPU; images uint8 become [0, 1] first. The method
    of a module gets them on the module's device."""
    device = getattr(getattr(function, "__self__", None), "device", "cpu")
    return torch.cat([function(part.to(device).float() / (255 if x.dtype == torch.uint8 else 1)).float().cpu()
                      for part in x.split(batch_size)])


def adam(parameters, **options):
    """torch.optim.Adam in one pass over the weights, where this torch can: on a CPU since 2.4."""
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, fused=True, **options)
    except RuntimeError:
        return torch.optim.Adam(parameters, **options)


def mlp(*widths):
    """Linear layers with ReLU between."""
    layers = []
    for width, following in zip(widths, widths[1:]):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return layers[:-1]


def decoded_noise(decode, dimension, n, seed, scale=1.0):
    """n images decoded from z = scale * noise, with noise (n, dimension) ~ N(0, I)."""
    noise = torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed))
    return mapped(decode, scale * noise)
