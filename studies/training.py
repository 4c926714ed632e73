"""What the studies share of training: Lightning's Trainer with their flags, a LightningModule that logs its losses, and
its checkpoints."""
import contextlib
import csv
import importlib
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
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import bird
from common.errors import InputError
from common.files import read_json, write_files
from common.text import one_line

MIN_LAST_BATCH = 8  # images; a smaller last batch is left out of its epoch, because batch norm needs several
# What a study writes into its folder: what --overwrite deletes, and what a new run without it does not accept.
WRITTEN = ("study.json", "results.json", "report.html", "vae_standard.pth", "checkpoints", "logs", "figures", "frames")


class StudyModule(L.LightningModule):
    """A model with its losses. `history` has one dict per epoch: "epoch", "seconds" and for each loss train_NAME, the
    mean over the epoch, and test_NAME, the mean over the held-out images after it."""
    name, metadata, seed, log_file = "", {}, 0, None  # set by Run.fit
    strategy = None    # for several processes, where the requested one does not work
    scheduled = False  # whether the learning rate depends on the number of epochs, which --resume cannot change then
    latent = None      # dimension of the z ~ N(0, I) that `decode` turns into images, if the model has such a latent

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
        self._start = time.monotonic()
        # An epoch's noise depends on seed and epoch only, so that a resumed training equals an uninterrupted one.
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
        self.history.append({"epoch": epoch, "seconds": time.monotonic() - self._start, **row})
        if self.trainer.is_global_zero:
            table = io.StringIO()
            rows = csv.DictWriter(table, self.history[0], lineterminator="\n")
            rows.writeheader()
            rows.writerows(self.history)
            write_files({str(self.log_file): table.getvalue().encode()})
        if epoch % 5 == 0 or epoch == last:
            shown = [name for name in ("train_loss", "test_loss") if name in row] or row
            self.print(f"{self.name}: epoch {epoch}/{last}", *(f" {name} {row[name]:.4g}" for name in shown),
                       file=sys.stderr)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["history"], checkpoint["metadata"] = self.history, self.metadata

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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Atomic write of a checkpoint: temporary file, then rename."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_files({str(path): buffer.getvalue()})


class ImageData(L.LightningDataModule):
    """Batches of data.Images; seed and epoch determine the order of training images; all processes share a batch."""

    def __init__(self, train, test, batch_size, seed):
        super().__init__()
        self.train, self.test, self.batch_size, self.seed = train, test, batch_size, seed

    def _loader(self, images, shuffle):
        batch_size = max(1, self.batch_size // self.trainer.world_size)
        sampler = DistributedSampler(images, self.trainer.world_size, self.trainer.global_rank, shuffle, self.seed)
        few = len(sampler) > batch_size and 0 < len(sampler) % batch_size < MIN_LAST_BATCH
        return DataLoader(images, batch_size, sampler=sampler, collate_fn=lambda batch: batch,
                          drop_last=shuffle and few, generator=torch.Generator())

    def train_dataloader(self):
        return self._loader(self.train, True)

    def val_dataloader(self):
        return self._loader(self.test, False)


class Run:
    """Where and how a study trains: the flags of Lightning's Trainer and a folder. Raises InputError."""

    def __init__(self, folder, device="auto", devices=1, num_nodes=1, strategy="auto", precision="32-true",
                 threads=None, resume=False, overwrite=False, study=""):
        self.folder, self.resume, self.precision = Path(folder), resume, precision
        self.processes = devices * num_nodes
        ranks = [f"{name}={os.environ[name]}" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")
                 if os.environ.get(name, "0") not in ("", "0")]
        if self.processes == 1 and ranks:
            raise InputError(f"--devices: expected several processes, as {ranks[0]} in the environment says, found 1; "
                             f"unset {ranks[0].split('=')[0]} or give --devices")
        try:
            self.device = bird.pick_device(device)
        except bird.InputError:
            raise InputError(f"--device: expected an available device, found {device}") from None
        if self.device.type == "cpu" and devices > max(2, os.cpu_count()):
            raise InputError(f"--devices: expected at most {max(2, os.cpu_count())} here, found {devices}")
        if num_nodes > 1 and not {"RANK", "SLURM_PROCID", "NODE_RANK"} & set(os.environ):
            raise InputError(f"--num-nodes: expected torchrun or srun to start the command on each of {num_nodes} "
                             "machines, found neither")
        self.threads = threads or idle_cores(devices)
        torch.set_num_threads(self.threads)
        self.flags = {"accelerator": {"cuda": "gpu"}.get(self.device.type, self.device.type), "devices": devices,
                      "num_nodes": num_nodes, "strategy": strategy, "precision": precision}
        self.study, self.stale, self.prepared = study, [], False
        if self.is_global_zero:
            self._check_folder(overwrite)
        for part in ("pytorch", "fabric"):
            logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning.*")  # advice on workers and logging intervals

    @property
    def is_global_zero(self):
        """Whether this process is the one that measures and writes."""
        return self.processes == 1 or (not rank_zero_only.rank and os.environ.get("NODE_RANK", "0") in ("", "0"))

    def _check_folder(self, overwrite):
        """Raises InputError where the folder has other results."""
        there, marker = [name for name in WRITTEN if (self.folder / name).exists()], self.folder / "study.json"
        if there and not marker.exists():
            raise InputError(f"{self.folder}: expected a new folder or one of a study, found {', '.join(there)} of "
                             "something else")
        found = read_json(marker, "the name of a study").get("study") if self.resume and there else self.study
        if found != self.study:
            raise InputError(f"{self.folder}: expected results of {self.study}, found those of {found}; --overwrite "
                             "replaces them")
        if there and not (self.resume or overwrite):
            raise InputError(f"{self.folder}: expected a new folder, found {', '.join(there)} of an earlier run; "
                             "--resume continues it, --overwrite replaces it")
        self.stale = [] if self.resume else there

    def _prepare_folder(self):
        """Deletes what --overwrite replaces and creates the folder: not before the data have been read."""
        try:
            for path in (self.folder / name for name in self.stale):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: expected a folder for the results, found: {error.strerror}") from None
        write_files({str(self.folder / "study.json"): f'{{"study": "{self.study}"}}\n'.encode()})
        self.prepared = True
        print(f"{self.threads} thread{'s' * (self.threads > 1)} on {self.device}", file=sys.stderr)

    def fit(self, name, module, train, test=None, *, epochs, batch_size, seed=0, callbacks=(), metadata=None):
        """Trains a StudyModule on data.Images and returns it in evaluation mode. After each epoch the whole state is in
        FOLDER/checkpoints/NAME.ckpt, from which --resume continues, provided that settings, data and further `metadata`
        are those of the checkpoint. Raises InputError."""
        path, module.name, module.seed = self.folder / "checkpoints" / f"{name}.ckpt", name, seed
        module.log_file = self.folder / "logs" / f"{name}.csv"
        module.metadata = {
            "model": f"{type(module).__module__}.{type(module).__qualname__}", **_flat(module.hparams),
            "batch_size": batch_size, "images": len(train), "seed": seed,
            **({"epochs": epochs} if module.scheduled else {}), **(metadata or {}),
            "data": "-".join(images.fingerprint() for images in (train, test) if images is not None)}
        found, several = str(path) if self.resume and path.exists() else None, self.processes > 1
        if found:
            self._check(path, module.metadata, epochs)
        if self.is_global_zero and not self.prepared:
            self._prepare_folder()
        on_device(module, self.device)
        flags = {**self.flags, "strategy": module.strategy or self.flags["strategy"]} if several else self.flags
        try:
            trainer = L.Trainer(
                **flags, max_epochs=epochs, logger=False,
                callbacks=[*callbacks, ModelCheckpoint(
                    path.parent, name, save_on_train_epoch_end=True, enable_version_counter=False)],
                plugins=[AtomicCheckpointIO(), *([] if several else [LightningEnvironment()])],  # not SLURM's
                enable_progress_bar=sys.stdout.isatty(), enable_model_summary=False,
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

    def _check(self, path, metadata, epochs):
        """Raises InputError where a checkpoint is not of the training that is asked for."""
        checkpoint = read_checkpoint(path)
        there, epoch = checkpoint["metadata"], checkpoint["epoch"] + 1
        other = {key for key, asked in metadata.items() if there.get(key) != asked}
        why = [f"{key} {metadata[key]}, found {there.get(key)}" for key in metadata if key in other - {"data"}]
        why += ["the images and the split that it was trained on, found others"] * ("data" in other)
        why += [f"at most {epochs} epochs, found {epoch}"] * (epoch > epochs)
        if why:
            raise InputError(f"{path}: expected {why[0]}; --overwrite starts over")


def _flat(hyper_parameters):
    """Hyper-parameters without nested dicts and without the numbers of epochs."""
    flat = {}
    for key, value in hyper_parameters.items():
        flat.update(_flat(value) if isinstance(value, dict) else {key: value} if "epochs" not in key else {})
    return flat


def read_checkpoint(path):
    """Content of a checkpoint that Run.fit wrote, a dict. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint["metadata"], dict) and {"epoch", "history", "state_dict"} <= set(checkpoint):
            return checkpoint
    except OSError as error:
        raise InputError(f"{path}: expected a checkpoint, found: {error.strerror}") from None
    except Exception:  # corrupt files, pickled objects and other content raise many exception types
        pass
    raise InputError(f"{path}: expected a checkpoint of a study, as in its folder checkpoints/, found another or a "
                     "damaged file")


def load_model(path):
    """The StudyModule of a checkpoint of any study, on the CPU, in evaluation mode. Raises InputError."""
    checkpoint = read_checkpoint(path)
    module, _, name = str(checkpoint["metadata"].get("model")).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None) if module.startswith("studies.") else None
    except ImportError:
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, StudyModule)):
        raise InputError(f"{path}: expected a model of studies/, found {name}")
    try:
        model = kind(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: expected the weights of a {name}, found: {one_line(error)}") from None
    model.history = checkpoint["history"]
    return model.eval()


def idle_cores(devices=1):
    """Threads for each of `devices` processes: the cores that torch would take, less the load of the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    return max(1, (torch.get_num_threads() - round(load)) // devices)


def on_device(module, device):
    """The module on a device; on MPS contiguous: batch norms in channels_last get wrong gradients there
    (pytorch/pytorch#175189)."""
    if device.type == "mps":
        module.to(memory_format=torch.contiguous_format)
    return module.to(device)


@torch.no_grad()
def map_batches(function, x, batch_size=1000):
    """function over a tensor (N, ...) in batches, as float32 on the CPU; images uint8 become [0, 1] first. The method
    of a module gets them on the module's device."""
    device = getattr(getattr(function, "__self__", None), "device", "cpu")
    return torch.cat([function(part.to(device).float() / (255 if x.dtype == torch.uint8 else 1)).float().cpu()
                      for part in x.split(batch_size)])


def adam(parameters, **options):
    """A torch.optim.Adam that updates all weights in one kernel where this torch can: on a CPU since 2.4."""
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, fused=True, **options)
    except RuntimeError:
        return torch.optim.Adam(parameters, **options)


def mlp(*widths):
    """Linear layers with ReLU between them."""
    layers = []
    for width, following in zip(widths, widths[1:]):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return layers[:-1]


def decode_prior(decode, dimension, n, seed, scale=1.0):
    """n images decoded from z = scale * noise, with noise (n, dimension) ~ N(0, I)."""
    noise = torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed))
    return map_batches(decode, scale * noise)
