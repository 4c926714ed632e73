"""One training loop for all studies, on Lightning Fabric: device, precision and number of processes are its flags.

The images lie in memory as uint8 and become float a batch at a time. Order and noise of an epoch come from generators
seeded by (seed, epoch, step) for the *global* batch, of which each process takes its rows: N processes give the losses
of one (but for nn.Dropout, which draws for itself), and an interrupted training goes on to the weights of an
uninterrupted one.
"""
import contextlib
import dataclasses
import datetime
import math
import os
import pickle
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import bird
from common.errors import InputError, bad_input_of, one_line
from studies import layers

PRECISIONS = ("32-true", "bf16-mixed")
LEAST_ROWS = 8  # a smaller last batch is left out of its epoch: batch normalisation needs company


class Bench(NamedTuple):
    """Where a study works."""
    fabric: object        # lightning_fabric.Fabric, launched
    folder: Path          # of the study's output
    resume: bool = False  # go on from the checkpoints in it
    quiet: bool = False   # no progress bars
    precision: str = PRECISIONS[0]

    @property
    def leads(self):
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero


class Fitted(NamedTuple):
    """A trained model."""
    modules: dict    # name -> nn.Module, bare, in evaluation mode
    history: list    # a row an epoch: {"epoch", "train": {loss: mean}, "test": {...}, "seconds"}
    kept: list       # what `each_epoch` gave, an item an epoch
    seconds: float   # of training, over all interruptions
    trained: int     # epochs that this call trained; 0 when the checkpoint was complete

    def curve(self, part, loss):
        """The loss of that name by epoch, a list, for the part "train" or "test"."""
        return [row[part][loss] for row in self.history]


# -------------------------------------------------------------------------------------------------------------- set-up

def open_bench(folder, device="auto", devices=1, precision="32-true", resume=False, quiet=False):
    """A Bench with an existing folder; with several `devices` this starts the other processes, so all that can be wrong
    with the input should be found before. Raises InputError."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    if devices < 1:
        raise InputError(f"studies: expected --devices of 1 or more, found {devices}")
    if precision not in PRECISIONS:
        raise InputError(f"studies: expected a --precision of {' or '.join(PRECISIONS)}, found '{precision}'")
    with bad_input_of(bird):
        kind = bird.pick_device(device).type
    there = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else 1024
    if devices > there:
        raise InputError(f"studies: expected --devices of at most {there} with {kind}, found {devices}")
    folder = Path(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for the results, found: {one_line(error)}") from None
    if not os.access(str(folder), os.W_OK):
        raise InputError(f"{folder}: expected a folder to write in, found one closed to writing")
    if kind == "cpu":  # Fabric sets it to 1, and then every step of Adam looks for NVIDIA's library on the disk
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    # Buffers that are broadcast before each forward would change under a loss that looks through one network twice.
    strategy = DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto"
    fabric = Fabric(accelerator=kind, devices=devices, precision=precision, strategy=strategy)
    fabric.launch()
    bird.keep_freed_memory()
    return Bench(fabric, folder, resume, quiet, precision)


def leave(failed=False):
    """Lets all processes end together and closes the connections between them; does nothing in a lone process.

    A process that ends with its connections open can abort those that still use them, and itself. After a failure of
    its own a process waits for the others no more than ten seconds: they may be in the midst of an operation, which
    then ends with an error in them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    patience = datetime.timedelta(seconds=10) if failed else datetime.timedelta(days=1)  # the first one draws figures
    try:
        if torch.distributed.get_backend() == "gloo":
            torch.distributed.monitored_barrier(timeout=patience)
        elif not failed:  # NCCL's barrier has no time limit of its own
            torch.distributed.barrier()
    except RuntimeError:  # the others have ended with an error of their own
        pass
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def seeded(*seeds):
    """Within, torch's default generator is seeded, as new layers and dropout need it; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(*seeds))
        yield


def mixed_seed(*seeds):
    """One seed of 63 bits from several non-negative integers; neighbours have nothing in common."""
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*seeds):
    """A torch.Generator on the CPU, seeded by several non-negative integers."""
    return torch.Generator().manual_seed(mixed_seed(*seeds))


# -------------------------------------------------------------------------------------------------------------- batches

class Batch:
    """This process's rows of one global batch.

    x       images float32 (B, C, H, W) in [0, 1]        epoch   from 1; 0 when the held-out images are scored
    y       labels int64 (B,), or None                   weight  what makes the mean over the processes of
    index   int64 (B,), which images of the set                  weight * loss the mean over the global batch
    """

    def __init__(self, images, index, seeds, fabric, channels_last):
        self.epoch, self._seeds, self._calls, self._total = seeds[1], seeds, 0, len(index)
        rank, world = fabric.global_rank, fabric.world_size
        self._rows = slice(len(index) * rank // world, len(index) * (rank + 1) // world)
        self.index, self.device = index[self._rows], fabric.device
        rows = self.index.to(images.pixels.device)
        x = images.pixels.index_select(0, rows).to(self.device).float().div_(255)
        self.x = x.to(memory_format=torch.channels_last) if channels_last else x
        self.y = None if images.labels is None else images.labels[rows].to(self.device)
        self.weight = len(self.index) * world / len(index)

    def __len__(self):
        return len(self.index)

    def normal(self, *shape):
        """Standard normal noise (B, *shape): these rows of what the whole batch gets."""
        return torch.randn(self._total, *shape, generator=self._generator())[self._rows].to(self.device)

    def integers(self, below):
        """Random integers (B,) in 0..below - 1."""
        return torch.randint(below, (self._total,), generator=self._generator())[self._rows].to(self.device)

    def _generator(self):
        self._calls += 1  # the second noise of a step is another than the first
        return generator(*self._seeds, self._calls)


def epoch_batches(n, batch, order=None):
    """Index tensors that cover 0..n-1 in batches, in a random order drawn from the generator `order`, or in their
    own."""
    index = torch.arange(n) if order is None else torch.randperm(n, generator=order)
    return list(index.split(batch))


def steps_an_epoch(n, batch, least=LEAST_ROWS):
    """How many batches of an epoch are trained on."""
    return n // batch + (n % batch >= min(least, n))


# ------------------------------------------------------------------------------------------------------------- training

def fit(bench, name, modules, optimizers, step, train, test=None, *, epochs, batch, seed=0, about=None, update=None,
        each_epoch=None, channels_last=False):
    """Trains and returns a Fitted.

    name        of the checkpoint, FOLDER/checkpoints/NAME.pt, written after every epoch
    modules     {name: nn.Module}; optimizers {name: Optimizer}, an optimizer under the name of its module
    step        step(modules, batch) -> {loss: scalar, a mean over the batch}; "loss" is what is minimised. It calls
                modules as modules["vae"](...): their other methods would pass by the engine
    train, test Images; the losses of `test` are taken in evaluation mode, with the same noise after each epoch
    batch       images of a global batch
    about       what a checkpoint must agree with to be resumed, of plain values
    update      update(modules, optimizers, batch, backward) -> losses, where one backward and one step of all
                optimizers is not how it is trained; it gives losses to backward(loss) in place of loss.backward()
    each_epoch  each_epoch(bare modules, epoch) -> tensors or plain values to keep, in evaluation mode and without
                gradients, in one process alone
    Raises InputError."""
    fabric, path = bench.fabric, bench.folder / "checkpoints" / f"{name}.pt"
    channels_last = channels_last and fabric.device.type != "mps"
    about = {"batch": batch, "seed": seed, "precision": bench.precision,
             "data": [fingerprint(part) for part in (train, test) if part is not None], **(about or {})}
    state = _resumed(bench, path, about, epochs) if bench.resume else None
    wrapped, optimizers = _set_up(fabric, modules, optimizers, channels_last)
    history, kept, first = [], [], 1
    if state:
        with _fits(path):
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            for key, optimizer in optimizers.items():
                optimizer.load_state_dict(state["optimizers"][key])
        history, kept, first = state["history"], state["kept"], state["epoch"] + 1
    if first <= epochs:
        train, test = _on_device(train, fabric.device), _on_device(test, fabric.device)

    def backward(loss):
        fabric.backward(loss * weight)

    def minimise(models, optimizers, part, backward):
        losses = step(models, part)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        backward(losses["loss"])
        for optimizer in optimizers.values():
            optimizer.step()
        return losses

    steps = steps_an_epoch(len(train), batch, max(LEAST_ROWS, 2 * fabric.world_size))
    bar = tqdm(total=epochs * steps, initial=min(first - 1, epochs) * steps, desc=name, unit="step", file=sys.stderr,
               disable=bench.quiet or not bench.leads, mininterval=0.5 if sys.stderr.isatty() else 30, leave=False)
    with bar:
        for epoch in range(first, epochs + 1):
            began = time.monotonic()
            for module in wrapped.values():
                module.train()
            means = _Means(fabric)
            with seeded(seed, epoch, fabric.global_rank, 1):
                order = generator(seed, epoch)
                for number, index in enumerate(epoch_batches(len(train), batch, order)[:steps]):
                    part = Batch(train, index, (seed, epoch, number), fabric, channels_last)
                    weight = part.weight
                    means.add((update or minimise)(wrapped, optimizers, part, backward), len(part))
                    bar.update()
            row = {"epoch": epoch, "train": means.taken()}
            for module in wrapped.values():
                module.eval()
            row["test"] = score(fabric, wrapped, step, test, batch, seed, channels_last) if test is not None else {}
            row["seconds"] = time.monotonic() - began
            _check_finite(name, row)
            history.append(row)
            bar.set_postfix({part: f"{next(iter(row[part].values())):.4g}" for part in ("train", "test") if row[part]},
                            refresh=False)
            if bench.leads:
                with torch.no_grad():
                    kept.append(each_epoch(modules, epoch) if each_epoch else None)
                _save_checkpoint(path, {
                    "epoch": epoch, "about": about, "history": history, "kept": kept,
                    "modules": {key: module.state_dict() for key, module in modules.items()},
                    "optimizers": {key: optimizer.state_dict() for key, optimizer in optimizers.items()}})
    for module in modules.values():
        module.eval()
    return Fitted(dict(modules), history, kept, sum(row["seconds"] for row in history), max(0, epochs + 1 - first))


@torch.no_grad()
def score(fabric, modules, step, images, batch, seed=0, channels_last=False):
    """{loss: mean} of modules in evaluation mode over all images, with the noise of epoch 0."""
    means = _Means(fabric)
    for number, index in enumerate(epoch_batches(len(images), batch)):
        part = Batch(images, index, (seed, 0, number), fabric, channels_last)
        means.add(step(modules, part) if len(part) else {}, len(part))
    return means.taken()


class _Means:
    """Means of named losses over the images of all processes, summed where they are made: reading a number off a GPU
    would make it wait at every step."""

    def __init__(self, fabric):
        self.fabric, self.names, self.sums, self.images = fabric, [], 0.0, 0

    def add(self, losses, images):
        if images:
            self.names = list(losses)
            values = torch.stack([value.detach().float() for value in losses.values()])
            self.sums = self.sums + (values if values.device.type == "mps" else values.double()) * images
            self.images += images

    def taken(self):
        names = self.fabric.broadcast(self.names) if self.fabric.world_size > 1 else self.names
        sums = self.sums if self.images else torch.zeros(len(names), dtype=torch.float64, device=self.fabric.device)
        total = self.fabric.all_reduce(torch.cat([sums, sums.new_tensor([float(self.images)])]), reduce_op="sum")
        return dict(zip(names, (total[:-1] / total[-1]).tolist()))


def _set_up(fabric, modules, optimizers, channels_last):
    wrapped, ready = {}, {}
    for key, module in modules.items():
        if channels_last:
            module.to(memory_format=torch.channels_last)
        layers.fit_for(module, fabric.device, fabric.world_size)
        if key in optimizers:
            wrapped[key], ready[key] = fabric.setup(module, optimizers[key])
        else:
            wrapped[key] = fabric.setup_module(module)
    return wrapped, ready


def _on_device(images, device):
    """The images on a GPU where they leave most of it free; batches are cut from them there."""
    if images is None or device.type != "cuda" or images.pixels.numel() > torch.cuda.mem_get_info(device)[0] // 4:
        return images
    return dataclasses.replace(images, pixels=images.pixels.to(device),
                               labels=None if images.labels is None else images.labels.to(device))


def _check_finite(name, row):
    for part in ("train", "test"):
        for loss, value in row[part].items():
            if not math.isfinite(value):
                raise InputError(f"{name}: expected losses that are numbers, found {part} {loss} {value} in epoch "
                                 f"{row['epoch']}; the training has diverged")


# ---------------------------------------------------------------------------------------------------------- checkpoints

def fingerprint(images):
    """A number that other images or another order of them would hardly have."""
    pixels = images.pixels.flatten()
    some = pixels[::max(1, len(pixels) // 1_000_003)].to(torch.int64)
    marks = 0 if images.labels is None else int((images.labels * torch.arange(1, len(images) + 1)).sum())
    return [list(images.pixels.shape), int((some * (torch.arange(len(some)) % 65_521 + 1)).sum()), marks]


def _save_checkpoint(path, state):
    with bad_input_of(bird):
        bird.write_files({str(path): bird.saved_bytes(state)})


def _resumed(bench, path, about, epochs):
    """The state of a checkpoint, or None, in all processes: one that found an error alone would leave the others
    waiting. Raises InputError."""
    state, error = None, None
    if bench.leads:
        try:
            state = _load_checkpoint(path, about, epochs)
        except InputError as found:
            error = str(found)
    if bench.fabric.world_size > 1:
        state, error = bench.fabric.broadcast((state, error))
    if error:
        raise InputError(error)
    return state


def _load_checkpoint(path, about, epochs):
    """The state of a checkpoint, None where there is none. Raises InputError when it is of another training."""
    if not path.exists():
        return None
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True)
        found, epoch = state["about"], state["epoch"]
    except pickle.UnpicklingError:  # torch's own text recommends to load it all the same
        raise InputError(f"{path}: expected a checkpoint, found a file that is broken or holds more than tensors; "
                         "start without --resume") from None
    except Exception as error:  # broken bytes trip torch.load in a dozen ways
        raise InputError(f"{path}: expected a checkpoint, found: {one_line(error)}; start without --resume") from None
    differing = sorted(key for key in {*about, *found} if about.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise InputError(f"{path}: expected {key} {about.get(key)} as asked, found a training with {found.get(key)}; "
                         "start without --resume")
    if epoch > epochs:
        raise InputError(f"{path}: expected at most {epochs} epochs as asked, found {epoch}; start without --resume")
    return state


@contextlib.contextmanager
def _fits(path):
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: expected the weights of this model, found: {one_line(error)}; "
                         "start without --resume") from None


# ------------------------------------------------------------------------------------------------------ after training

@torch.no_grad()
def mapped(function, x, batch=1000):
    """function over a tensor (N, ...) in batches, as float32 on the CPU: images uint8 become [0, 1] first. A module's
    device is found from its parameters."""
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    device = next((p.device for p in module.parameters()), None) if isinstance(module, nn.Module) else None
    parts = []
    for part in x.split(batch):
        part = part.to(device) if device is not None else part
        parts.append(function(part.float().div_(255) if part.dtype == torch.uint8 else part).float().cpu())
    return torch.cat(parts)


def cross_entropy_step(name):
    """The `step` of a classifier modules[name]: cross-entropy in nats, and the share of wrong labels."""
    def step(modules, batch):
        logits = modules[name](batch.x)
        return {"loss": F.cross_entropy(logits, batch.y), "error": (logits.argmax(1) != batch.y).float().mean()}
    return step
