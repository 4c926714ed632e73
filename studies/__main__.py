"""python -m studies STUDY DATA... --out FOLDER"""
import argparse
import importlib
import os
import sys
from pathlib import Path

from common.errors import InputError
from studies import printable

STUDIES = {  # module of this package, with EXAMPLE, add_arguments(parser) and run(args) -> exit code: what it does
    "autoencoder": "an autoencoder and a VAE of the same body, side by side",
    "fashion": "a convolutional VAE of garments, and what beta does to its latents",
    "representations": "what VAE and VQ-VAE latents are worth for classification and for sampling",
    "gan": "a DCGAN: what it draws, whether it copies, whether it collapses",
}


def _parser():
    listed = "\n".join(f"  {name:16} {what}" for name, what in STUDIES.items())
    return argparse.ArgumentParser(
        prog="python -m studies", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"The other experiments of the course family. Studies, each with its own --help:\n\n{listed}")


def _count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def _seed(text):
    value = int(text)
    if not 0 <= value < 2 ** 31:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^31 - 1, found {text}")
    return value


def add_common_arguments(parser):
    """The words and flags that every study takes."""
    parser.add_argument("data", nargs="+", metavar="DATA",
                        help="MNIST, FashionMNIST or KMNIST; idx, .npz, .npy, a folder of images or a zip of one; a "
                             "second one is held out (default: its own test files, else a share of each class)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER",
                        help="for figures, results.json, report.html and checkpoints")
    parser.add_argument("--quick", action="store_true", help="the whole study, small: under 2 minutes on 2 cores")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier call stopped")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="repeat with N seeds: mean and sd")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="the first of them (default: 0)")
    parser.add_argument("--epochs", type=_count, metavar="N", help="in place of the study's own number")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps", "auto"),
                        help="where to train; auto: the best there (default: cpu)")
    parser.add_argument("--devices", type=_count, default=1, metavar="N",
                        help="processes to share each batch, one a GPU (default: 1)")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"),
                        help="of the arithmetic (default: 32-true)")
    parser.add_argument("--signature", default="", type=printable, metavar="TEXT", help="a text on every figure")


def main(argv=None):
    """Runs one study; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    parser.add_argument("study", choices=STUDIES, metavar="STUDY")
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(argv[:1]).study
    follows = os.environ.get("LOCAL_RANK", "0") != "0"  # a process that the first one started says nothing
    code = None
    try:
        module = importlib.import_module(f"studies.{name}")
        parser = argparse.ArgumentParser(
            prog=f"python -m studies {name}", description=module.__doc__, epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter)
        add_common_arguments(parser)
        module.add_arguments(parser)
        args = parser.parse_args(argv[1:])
        args.study, args.words = name, list(map(printable, argv[1:]))  # for the report, which states the command
        code = module.run(args)
        return code
    except InputError as error:
        if not follows:
            print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not (follows and "by peer" in str(error)):  # gloo's: connection reset, or closed, by peer
            raise
        return 1  # the first process has ended, and said why
    except KeyboardInterrupt:
        if not follows:
            print(f"python -m studies {name}: interrupted; --resume goes on from the last epoch", file=sys.stderr)
        return 130
    finally:
        if "studies.engine" in sys.modules:  # --help imports no more than it shows
            sys.modules["studies.engine"].leave(failed=code != 0)


if __name__ == "__main__":
    sys.exit(main())
