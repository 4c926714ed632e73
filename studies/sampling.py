"""python -m studies sample CHECKPOINT --out IMAGE, python -m studies traverse CHECKPOINT --out IMAGE"""
from pathlib import Path

import torch

from common.command_line import Parser
from common.errors import InputError
from common.files import write_files
from common.text import escape_surrogates
from studies import figures, training

STEPS = 11       # values of z_j in a traversal, from -REACH to REACH
REACH = 3.0      # standard deviations of N(0, I)
MOST_ROWS = 16   # dimensions shown, those that change the image most


def load_decoder(path):
    """The model of a checkpoint, with `latent` and `decode`. Raises InputError for models without a latent."""
    model = training.load_model(path)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise InputError(f"{path}: expected weights that are numbers, found NaN or infinity")
    if model.latent is None:
        raise InputError(f"{path}: expected a model that decodes z ~ N(0, I): a VAE, an autoencoder or a GAN, found "
                         f"{type(model).__name__}")
    return model


def sample_figure(model, n=64, seed=0):
    """Figure of n images decoded from z ~ N(0, I)."""
    images = training.decode_prior(model.decode, model.latent, n, seed)
    return figures.grid_figure({"z ~ N(0, I)": images}, columns=max(1, round(n ** 0.5)))


def traversal(model):
    """{"zj": images (STEPS, C, H, W)}: z_j from -REACH to REACH where the others are 0, for the dimensions j that
    change the image most (mean squared difference of the two ends)."""
    values, axes = torch.linspace(-REACH, REACH, STEPS), torch.eye(model.latent)
    ends = training.map_batches(model.decode, REACH * torch.cat([-axes, axes]))
    change = (ends[:model.latent] - ends[model.latent:]).square().flatten(1).mean(1)
    chosen = change.argsort(descending=True, stable=True)[:MOST_ROWS].tolist()
    return {f"z{j + 1}": training.map_batches(model.decode, values[:, None] * axes[j]) for j in chosen}


def traversal_figure(model):
    """Figure of images along each latent dimension, one row per dimension; of a model with two, all pairs of values in
    a grid."""
    if model.latent != 2:
        return figures.rows_figure(traversal(model))
    values = torch.linspace(-REACH, REACH, 2 * STEPS - 1)
    z = torch.cartesian_prod(values.flip(0), values).flip(1)  # z_1 to the right, z_2 upwards
    return figures.grid_figure({f"z1 to the right, z2 upwards, {-REACH:g} to {REACH:g}": training.map_batches(
        model.decode, z)}, columns=len(values))


def make_parser(tool):
    """The command line of a tool, "sample" or "traverse"."""
    parser = Parser(prog=f"python -m studies {tool}", description=(sample_figure if tool == "sample" else
                                                                  traversal_figure).__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file of a study's folder checkpoints/")
    parser.add_argument("--out", required=True, type=Path, metavar="IMAGE", help="PNG to write")
    if tool == "sample":
        parser.add_argument("--n", type=int, default=64, metavar="N", help="images (default: 64)")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    return parser


def main(tool, argv):
    """Writes the picture of a tool; returns a line on it. Raises InputError."""
    args = make_parser(tool).parse_args(argv)
    if args.out.suffix.lower() != ".png":
        raise InputError(f"--out: expected a name that ends in .png, found {args.out.name}")
    if tool == "sample" and not 1 <= args.n <= 10_000:
        raise InputError(f"--n: expected 1 to 10,000 images, found {args.n}")
    model = load_decoder(args.checkpoint)
    figure = sample_figure(model, args.n, args.seed) if tool == "sample" else traversal_figure(model)
    write_files({str(args.out): figures.png_bytes(figure)})
    return f"wrote {escape_surrogates(str(args.out))}"
