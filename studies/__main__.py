"""python -m studies STUDY DATA... --out FOLDER"""
import argparse
import dataclasses
import functools
import importlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError, Parser
from studies import printable

# Modules of this package. Each has TITLE, LEAD, EXAMPLE, Settings (the described experiment), VARIANTS {name: changes
# of the settings}, QUICK (changes for --quick), CHANNELS, LABELLED, and train, measure and sections for `run` below.
STUDIES = {
    "autoencoder": "an autoencoder and a VAE of the same layers, side by side",
    "fashion": "a convolutional VAE on Fashion-MNIST, and what beta does to its latents",
    "representations": "VAE and VQ-VAE latents of photos for classification and for sampling",
    "gan": "a GAN on paintings, measured while it trains",
}


class Study(NamedTuple):
    """What a study works with."""
    args: argparse.Namespace
    settings: object  # of the described experiment, a dataclass
    variants: dict    # name -> settings; the first is "described"
    train: object     # data.Images
    test: object      # data.Images, held out
    seeds: list
    run: object       # training.Run


def _at_least(least):
    def whole(text):
        value = int(text)
        if not least <= value < 2 ** 31:
            raise argparse.ArgumentTypeError(f"expected {least} or more, found {text}")
        return value
    return whole


def _parser(name, module):
    parser = Parser(
        prog=f"python -m studies {name}", description=module.__doc__, epilog=f"example: {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add, count = parser.add_argument, _at_least(1)
    add("data", nargs="+", metavar="DATA", help="MNIST, FashionMNIST, KMNIST, a folder of images, .npz or .npy; a "
        "second one is held out (default: its own test files, else a fifth of each class)")
    add("--out", required=True, type=Path, metavar="FOLDER", help="for figures, results.json, report.html, checkpoints")
    add("--variant", nargs="+", default=[], choices=module.VARIANTS, metavar="NAME",
        help=f"train these in addition to the described experiment: {', '.join(module.VARIANTS)}")
    add("--quick", action="store_true", help="the whole study, small: under 2 minutes on 2 cores")
    add("--resume", action="store_true", help="go on where an earlier call stopped")
    add("--seeds", type=count, default=1, metavar="N", help="repeat with N seeds: mean and standard deviation")
    add("--seed", type=_at_least(0), default=module.Settings.seed, metavar="N", help="the first of them")
    add("--epochs", type=count, metavar="N", help="in place of the study's own number")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: the best there)")
    add("--devices", type=count, default=1, metavar="N", help="processes on this machine, one a GPU (default: 1)")
    add("--num-nodes", type=count, default=1, metavar="N", help="machines (default: 1)")
    add("--strategy", default="auto", choices=("auto", "ddp"), help="of Lightning's Trainer (default: auto)")
    add("--precision", default="32-true", metavar="NAME", help="of Lightning's Trainer, such as bf16-mixed")
    add("--signature", default="", type=printable, metavar="TEXT", help="a text on every figure")
    return parser


def run(module, args):
    """Trains, measures and reports a study."""
    from torch import distributed

    from studies import data, figures, report, training
    began = time.monotonic()
    settings = module.Settings(**(module.QUICK if args.quick else {}))
    if args.epochs:
        settings = dataclasses.replace(settings, **{
            field.name: args.epochs for field in dataclasses.fields(settings) if field.name.endswith("epochs")})
    variants = {name: dataclasses.replace(settings, **module.VARIANTS[name]) for name in args.variant}
    train, test, how = data.read_split(args.data, settings.side, module.CHANNELS, args.seed, module.LABELLED)
    study = Study(
        args, settings, {"described": settings, **variants}, train.at_most(settings.most_train, args.seed),
        test.at_most(settings.most_test, args.seed), list(range(args.seed, args.seed + args.seeds)),
        training.Run(args.out, args.device, args.devices, args.num_nodes, args.strategy, args.precision, args.resume))
    trained = module.train(study)
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()  # what follows, the first process does alone
    if not study.run.leads:
        return
    print("measuring", file=sys.stderr)
    results = {**report.run_facts(study, how), **module.measure(study, trained)}
    sections = module.sections(study, trained, results, functools.partial(figures.picture, args.signature))
    lead = module.LEAD.format(**results["data"], **results["settings"])
    print(report.write_study(args.out, module.TITLE, lead, sections, results, began))


def main(argv=None):
    """Runs one study; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    listed = "\n".join(f"  {name:16} {what}" for name, what in STUDIES.items())
    parser = Parser(
        prog="python -m studies", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"The other experiments of the course family. Studies, each with its own --help:\n\n{listed}")
    parser.add_argument("study", choices=STUDIES, metavar="STUDY")
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    alone = os.environ.get("LOCAL_RANK", "0") == "0"  # of several processes, which end alike, the first says why
    try:
        name = parser.parse_args(argv[:1]).study
        module = importlib.import_module(f"studies.{name}")
        args = _parser(name, module).parse_args(argv[1:])
        args.study, args.words = name, list(map(printable, argv[1:]))  # for the report, which states the command
        run(module, args)
        return 0
    except KeyboardInterrupt:
        if alone:
            after_bar = "\n" * sys.stderr.isatty()
            print(f"{after_bar}python -m studies {argv[0]}: interrupted; --resume continues from the last epoch",
                  file=sys.stderr)
        return 130
    except InputError as error:
        if alone:
            print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
