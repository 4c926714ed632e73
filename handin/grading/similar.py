"""Pairs of similar scripts, by copydetect: winnowed fingerprints of the tokens, ignoring names (Schleimer et al. 2003,
doi:10.1145/872757.872770)."""
import io
import itertools

from handin.grading import submissions
from handin.grading.contract import SCRIPTS

TOKENS, WINDOW = 25, 1  # copydetect's defaults: length of a fingerprint, and fingerprints of a window
THRESHOLD = 0.5         # share of common tokens; different solutions of the assignment had at most 0.35, copies 1


def similar_scripts(found):
    """[(name, other name, share of common tokens)] of pairs of one part among {name: Submission}, the most similar
    first."""
    sources = {part: {} for part in SCRIPTS}
    for name, submission in found.items():
        try:
            with submissions.open_submission(submission) as folder:
                for part, path in submissions.find_scripts(folder).items():
                    if not isinstance(path, str):
                        sources[part][name] = path.read_text("utf-8", "replace")
        except Exception:  # graded as a submission without a script
            continue
    return sorted((pair for part in sources.values() for pair in similar_pairs(part)), key=lambda pair: -pair[2])


def similar_pairs(sources):
    """[(name, other name, share)] of pairs among {name: source} that have at least half of their tokens in common; of
    the two shares, one for each script of a pair, the larger one."""
    from copydetect import CodeFingerprint, compare_files
    prints = {name: CodeFingerprint("script.py", TOKENS, WINDOW, fp=io.StringIO(source))
              for name, source in sources.items()}
    shares = ((first, second, float(max(compare_files(prints[first], prints[second])[1])))
              for first, second in itertools.combinations(sorted(prints), 2))
    return [pair for pair in shares if pair[2] >= THRESHOLD]
