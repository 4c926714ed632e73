"""Peak memory of bird.py's two commands on 20,000 photos of 1,200 px, as the system counts it.

    python -m benchmarks.bird_memory [--photos 20000] [--minutes 6]

400 photos are drawn; the rest are links to them, read like any other file. Training stops after so many minutes, by
which time all photos are decoded and epochs have started.
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.bird_speed import draw_photos
from benchmarks.vae_speed import ROOT, run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        draw_photos(photos)
        drawn = sorted(photos.rglob("*.jpg"))
        for index in range(len(drawn), args.photos):
            source = drawn[index % len(drawn)]
            os.link(source, source.parent / f"link_{index}.jpg")
        script = str(ROOT / "bird.py")
        for words in (("train", "bird.pth", "--minutes", str(args.minutes)), ("test", "bird.pth")):
            seconds, peak = run([sys.executable, script, str(photos), *words], folder)
            print(f"{words[0]}: {args.photos} photos, {seconds:.0f} s, peak {peak / 1000:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
