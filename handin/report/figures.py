"""Draws the figures that the assignment requires and computes the numbers of the report, from saved models.

Nothing is trained. Each figure is written to FIGURES/NAME.png (200 dpi) and FIGURES/NAME.pdf, the numbers to
FIGURES/numbers.json, which keeps those of the other part. The digits also give FIGURES/latent.html, a page with the
decoded image of each point of the latent plane. The same input gives the same bytes.
"""
import dataclasses
import json
import sys
from pathlib import Path

import bird
import vae
from common.errors import convert_input_errors
from common.files import write_files
from handin.report import figures_birds, figures_digits, plots, results

EXAMPLE = "python -m handin figures birds TEST --model bird.pth"


def add_arguments(parser):
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    birds = parts.add_parser("birds", help="network, learning curves, confusion, Grad-CAM",
                             description=f"example: {results.COMMANDS['birds']}")
    digits = parts.add_parser("digits", help="learning curves, reconstructions, manifold, latents, mixture, SSIM, page",
                              description=f"example: {results.COMMANDS['digits']}")
    birds.add_argument("test", metavar="TEST", help="folder of class folders of photos that were not trained on")
    birds.add_argument("--model", required=True, metavar="FILE", help="bird.pth")
    digits.add_argument("val", metavar="VAL", help="the labelled digits that name the components, .npz")
    digits.add_argument("test", metavar="TEST", help="digits that were not trained on, .npz, with labels or without")
    digits.add_argument("--train", metavar="TRAIN", help="the training images, .npz, whose latents are drawn; labels "
                        "only color them (default: TEST)")
    digits.add_argument("--model", required=True, metavar="FILE", help="vae.pth")
    digits.add_argument("--mixture", required=True, metavar="FILE", help="gmm_params.pkl")
    for part in (birds, digits):
        part.add_argument("--history", metavar="FILE", help="history of the training (default: next to the model)")
        part.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")
        part.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best available)")


def run(args):
    """Draws one part; returns the exit code. Raises InputError."""
    results.read_numbers(args.out)  # fail before minutes of drawing
    with plots.style(), convert_input_errors(bird, vae):
        if args.part == "birds":
            drawn = figures_birds.draw_all(args.test, args.model, args.history, bird.pick_device(args.device))
        else:
            drawn = figures_digits.draw_all(args.val, args.test, args.train, args.model, args.history,
                                            args.mixture, vae.pick_device(args.device))
        figures, files, numbers, remarks = drawn
        others = " and ".join([*files, "numbers.json"])
        for name, figure in figures.items():
            files.update({name + ending: content for ending, content in plots.figure_bytes(figure).items()})
    whole = {**results.read_numbers(args.out), args.part: dataclasses.asdict(numbers)}
    files["numbers.json"] = (json.dumps(whole, indent=1) + "\n").encode()
    write_files({str(args.out / name): content for name, content in files.items()})
    for remark in remarks:
        print(remark, file=sys.stderr)
    print(f"wrote {len(figures)} figures, each as PNG and PDF, and {others}: {len(files)} files in {args.out}")
    return 0
