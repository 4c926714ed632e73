"""How figures look in handin/ and studies/."""
# Okabe & Ito 2008 (jfly.uni-koeln.de/color) without the pale yellow, and three that the colour-blind tell from these.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6622CC", "#663311", "#882255", "#000000")
MARKERS = "o^sDvPX*<>"
STYLE = {"font.size": 8, "axes.titlesize": 8, "legend.frameon": False, "axes.linewidth": 0.6, "lines.linewidth": 1.2}


def class_styles(classes):
    """{class: (colour, marker)}: both, so that the colour-blind tell classes apart; 100 different pairs."""
    return {name: (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
            for i, name in enumerate(classes)}
