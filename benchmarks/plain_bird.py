"""The usual solution compared with `bird.py`: the same photos, the same minutes, the same machine, one after the other.

    python -m benchmarks.plain_bird TRAIN TEST --minutes 30 --seeds 3

The usual solution is what students hand in: five convolution blocks with batch normalization and max pooling, 224 px,
horizontal flips and rotation, class weights, Adam 1e-3 with ReduceLROnPlateau, early stopping, ImageFolder and
DataLoader. A stratified fifth of TRAIN decides which epoch is kept. Prints (macro F1 + micro F1) / 2 on TEST."""
import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import bird
from benchmarks.vae_speed import ROOT
from handin.grading.scores import average_f1

SIDE, BATCH, PATIENCE = 224, 32, 10  # px, photos, epochs without a better validation loss
WORKERS = os.cpu_count() or 1


def network(n_classes):
    """Photos (B, 3, 224, 224) -> logits (B, n_classes)."""
    layers, inputs = [], 3
    for outputs in (32, 64, 128, 256, 512):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(inputs, n_classes))


@torch.no_grad()
def predict(model, loader):
    """Logits (N, K) and labels (N,)."""
    model.eval()
    device = next(model.parameters()).device
    found = [(model(photos.to(device)).cpu(), labels) for photos, labels in loader]
    return torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found])


def train_plain(train, test, minutes, seed):
    """Score on `test` of the usual solution after at most `minutes`, and the minutes and epochs it took."""
    start = time.monotonic()
    torch.manual_seed(seed)
    normal = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    whole = transforms.Compose([transforms.Resize((SIDE, SIDE)), *normal])
    augmented = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.RandomHorizontalFlip(),
                                    transforms.RandomRotation(15), *normal])
    photos, unchanged = datasets.ImageFolder(train, augmented), datasets.ImageFolder(train, whole)
    train_idx, val_idx = train_test_split(np.arange(len(photos)), test_size=0.2, stratify=photos.targets,
                                          random_state=seed)
    loader = DataLoader(Subset(photos, train_idx), BATCH, shuffle=True, num_workers=WORKERS)
    validation = DataLoader(Subset(unchanged, val_idx), BATCH, num_workers=WORKERS)
    counts = torch.bincount(torch.tensor(photos.targets)[train_idx], minlength=len(photos.classes))
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    device = bird.pick_device("auto")
    model = network(len(photos.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
    best, best_loss, best_epoch, epoch = None, float("inf"), 0, 0
    while best is None or (time.monotonic() - start < 60 * minutes and epoch - best_epoch < PATIENCE):
        epoch += 1
        model.train()
        for x, labels in loader:
            loss = F.cross_entropy(model(x.to(device)), labels.to(device), weights.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if time.monotonic() - start > 60 * minutes:
                break
        logits, labels = predict(model, validation)
        loss = F.cross_entropy(logits, labels, weights).item()
        plateau.step(loss)
        if loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(model.state_dict()), loss, epoch
    took = (time.monotonic() - start) / 60
    model.load_state_dict(best)
    unseen = datasets.ImageFolder(test, whole)
    if unseen.classes != photos.classes:
        raise SystemExit(f"{test}: expected the class folders of {train}")
    logits, labels = predict(model, DataLoader(unseen, BATCH, num_workers=WORKERS))
    return average_f1(labels, logits.argmax(1)), took, epoch


def train_ours(train, test, minutes, seed):
    """The same for bird.py's commands."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        subprocess.run([sys.executable, str(ROOT / "bird.py"), str(train), "train", "bird.pth", "--quiet", "--minutes",
                        str(minutes), "--seed", str(seed)], cwd=folder, check=True)
        took = (time.monotonic() - start) / 60
        subprocess.run([sys.executable, str(ROOT / "bird.py"), str(test), "test", "bird.pth", "--quiet"], cwd=folder,
                       check=True)
        predicted = np.loadtxt(Path(folder, "bird.csv"), skiprows=1, dtype=int)
        epochs = len(json.loads(Path(folder, "bird_history.json").read_text())["epochs"])
    return average_f1(datasets.ImageFolder(test).targets, predicted), took, epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    train, test = args.train.resolve(), args.test.resolve()
    print("| solution | seed | average F1 | minutes | epochs |\n|---|---|---|---|---|")
    for name, solution in (("usual", train_plain), ("bird.py", train_ours)):
        scores = []
        for seed in range(args.seeds):
            f1, took, epochs = solution(train, test, args.minutes, seed)
            scores.append(f1)
            print(f"| {name} | {seed} | {f1:.4f} | {took:.1f} | {epochs} |", flush=True)
        if len(scores) > 1:
            print(f"| {name} | mean | {statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f} | | |", flush=True)


if __name__ == "__main__":
    main()
