"""A training of a second for the tests of studies/training.py: python small_training.py FOLDER EPOCHS"""
import sys

import torch
from torch import nn

from studies.data import Images
from studies.training import Run, StudyModule


class Net(StudyModule):
    """A classifier with all that draws random numbers or keeps a state."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
                                  nn.Linear(16, 3))

    def losses(self, x, y):
        logits = self.body(x + 0.1 * torch.randn_like(x))
        return {"loss": nn.functional.cross_entropy(logits, y), "size": logits.square().mean()}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def images(n, seed):
    """n random images of 8 x 8 px in three classes."""
    draw = torch.Generator().manual_seed(seed)
    return Images(torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=draw),
                  torch.randint(3, (n,), generator=draw), ["a", "b", "c"], [])


def train(folder, epochs, resume=False, lr=0.01, seed=5, sets=None, overwrite=True, **options):
    """The trained Net."""
    torch.manual_seed(4)
    run = Run(folder, "cpu", threads=1, resume=resume, overwrite=overwrite, study="small")
    return run.fit("net", Net(lr), *(sets or (images(99, 1), images(31, 2))), epochs=epochs, batch_size=24, seed=seed,
                   **options)


if __name__ == "__main__":
    import small_training  # so that the model has the name that it has in the tests

    small_training.train(sys.argv[1], int(sys.argv[2]))
