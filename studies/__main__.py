"""python -m studies STUDY DATA... --out FOLDER, python -m studies sample|traverse CHECKPOINT --out IMAGE"""
import argparse
import dataclasses
import functools
import importlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from common import command_line
from common.command_line import Parser, list_commands, number
from common.errors import InputError
from common.text import escape_surrogates

# Modules of this package. Each has TITLE, SUBTITLE, EXAMPLE, Settings (the described experiment), VARIANTS {name:
# changed settings}, QUICK (changes for --quick), CHANNELS, NEEDS_CLASSES (two or more), TRAINS_ON_BOTH (a second source
# is trained on too, not held out), and train, measure, conclusions and sections for `run` below.
STUDIES = {
    "autoencoder": "an autoencoder and a VAE of the same layers, side by side",
    "fashion": "a convolutional VAE on Fashion-MNIST, and what beta does to its latents",
    "representations": "VAE and VQ-VAE latents of photos for classification and for sampling",
    "gan": "a GAN on paintings, measured while it trains",
}
TOOLS = {
    "sample": "images decoded from z ~ N(0, I) by the model of a checkpoint",
    "traverse": "images along the latent dimensions of the model of a checkpoint",
}


class Study(NamedTuple):
    """What a study works with."""
    args: argparse.Namespace
    settings: object  # of the described experiment, a dataclass
    variants: dict    # name -> settings; the first is "described"
    splits: list      # (training, held-out) data.Images of each source
    seeds: list
    run: object       # training.Run

    @property
    def train(self):
        """The training images of the first source."""
        return self.splits[0][0]

    @property
    def test(self):
        """The held-out images of the first source."""
        return self.splits[0][1]


def _given(text):
    if not text:
        raise argparse.ArgumentTypeError("expected a name, found nothing")
    return text


def make_parser(name, module):
    """The command line of a study."""
    parser = Parser(prog=f"python -m studies {name}", description=module.__doc__, epilog=f"example: {module.EXAMPLE}")
    add, count = parser.add_argument, number(int, 1, 2 ** 31 - 1)
    second = "both are trained on" if module.TRAINS_ON_BOTH else "the second one is held out"
    add("data", nargs="+", type=_given, metavar="DATA", help="MNIST, FashionMNIST, KMNIST, a folder of images or idx "
        f"files, .npz or .npy. If there are two, {second}. By default the data's own test files are held out, or a "
        "fifth of each class.")
    add("--out", required=True, type=_given, metavar="FOLDER", help="for figures, results, report and checkpoints")
    if module.VARIANTS:
        add("--variant", nargs="+", choices=module.VARIANTS, metavar="NAME",
            help=f"train these in addition to the described experiment: {', '.join(module.VARIANTS)}")
    add("--quick", action="store_true", help="the whole study on few images with small networks, in minutes")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an earlier run from its last finished epochs")
    again.add_argument("--overwrite", action="store_true", help="delete the results of an earlier run in FOLDER first")
    add("--keep-frames", action="store_true", help="keep each frame of the GIFs as PNG in FOLDER/frames")
    add("--seeds", type=count, default=1, metavar="N", help="repeat with N seeds: mean and standard deviation")
    add("--seed", type=number(int, 0, 2 ** 31 - 1), default=module.Settings.seed, metavar="N", help="the first of them")
    add("--epochs", type=count, metavar="N", help="for each network of the study (not the classifier behind the FID), "
        "in place of its own numbers")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: the best available)")
    add("--threads", type=count, metavar="N", help="CPU threads of each process (default: the cores that are idle)")
    add("--devices", type=count, default=1, metavar="N", help="processes on this machine, one per GPU (default: 1)")
    add("--num-nodes", type=count, default=1, metavar="N", help="machines (default: 1)")
    add("--strategy", default="auto", choices=("auto", "ddp"), help="of Lightning's Trainer (default: auto)")
    add("--precision", default="32-true", choices=("32-true", "16-mixed", "bf16-mixed"), help="(default: 32-true)")
    add("--signature", default="", type=escape_surrogates, metavar="TEXT", help="a text on every figure")
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    parser.set_defaults(variant=[])
    return parser


def run(module, args):
    """Trains, measures and reports a study."""
    from torch import distributed

    from studies import data, figures, report, training
    start = time.monotonic()
    for source in args.data:  # whose figures would be images to train on next time
        if Path(source).is_dir() and args.out.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"{args.out}: expected a folder outside the data, found one in {source}")
    run = training.Run(args.out, args.device, args.devices, args.num_nodes, args.strategy, args.precision, args.threads,
                       args.resume, args.overwrite, args.study)
    changes = {**(module.QUICK if args.quick else {}), "seed": args.seed}
    if args.epochs:
        names = (field.name for field in dataclasses.fields(module.Settings))
        changes.update({name: args.epochs for name in names if name.endswith("epochs")})
    settings = module.Settings(**changes)
    variants = {name: module.Settings(**{**module.VARIANTS[name], **changes}) for name in args.variant}
    sources = [[source] for source in args.data] if module.TRAINS_ON_BOTH and len(args.data) == 2 else [args.data]
    splits = [data.read_split(source, settings.side, module.CHANNELS, args.seed, module.NEEDS_CLASSES)
              for source in sources]
    for source, (train, *_), (_, test, _) in zip(args.data, splits[::-1], splits) if len(splits) == 2 else ():
        data.check_held_out(train, test, source)
    study = Study(
        args, settings, {"described": settings, **variants},
        [(train.subsample(settings.most_train, args.seed), test.subsample(settings.most_test, args.seed))
         for train, test, _ in splits], list(range(args.seed, args.seed + args.seeds)), run)
    trained = module.train(study)
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()  # what follows, the first process does alone
    if not study.run.is_global_zero:
        return
    print("measuring", file=sys.stderr)
    results = {**report.run_facts(study, "; ".join(dict.fromkeys(how for _, _, how in splits))),
               **module.measure(study, trained)}
    claims = module.conclusions(study, trained, results)
    results["conclusions"] = [claim._asdict() for claim in claims]
    sections = [report.conclusions(claims, results), *module.sections(
        study, trained, results, functools.partial(figures.picture, args.signature, claims))]
    subtitle = module.SUBTITLE.format(**results["data"], **results["settings"])
    print(report.write_study(args.out, module.TITLE, subtitle, sections, results, start, args.keep_frames))


def run_command(name, argv):
    """Runs one study or tool; returns its exit code."""
    if name in TOOLS:
        from studies import sampling
        print(sampling.main(name, argv))
        return 0
    module = importlib.import_module(f"studies.{name}")
    args = make_parser(name, module).parse_args(argv)
    args.out, args.study, args.argv = Path(args.out), name, list(map(escape_surrogates, argv))
    first = args.devices * args.num_nodes == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        run(module, args)
        return 0
    except KeyboardInterrupt:
        if first:
            raise KeyboardInterrupt("; --resume continues from the last epoch") from None
        return 130
    except InputError:
        if first:  # of several processes, which end alike, it says why
            raise
        return 2


def main(argv=None):
    """Runs one study or tool; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    parser = Parser(prog="python -m studies", epilog=f"and for their checkpoints:\n\n{list_commands(TOOLS)}",
                    description="The other experiments of the course family, each with its own --help:\n\n" +
                    list_commands(STUDIES))
    return command_line.main(parser, {**STUDIES, **TOOLS}, run_command, argv)


if __name__ == "__main__":
    sys.exit(main())
