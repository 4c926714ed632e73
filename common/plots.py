"""Colors, markers and matplotlib style of the figures in handin/ and studies/."""
# Okabe & Ito 2008 (jfly.uni-koeln.de/color) without the pale yellow, and three more that remain distinct for readers
# with color blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6622CC", "#663311", "#882255", "#000000")
MARKERS = "o^sDvPX*<>"
STYLE = {"font.size": 8, "axes.titlesize": 8, "legend.frameon": False, "axes.linewidth": 0.6, "lines.linewidth": 1.2}


def class_styles(classes):
    """{class: (color, marker)}, 100 distinct pairs; markers help readers with color blindness."""
    return {name: (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
            for i, name in enumerate(classes)}
