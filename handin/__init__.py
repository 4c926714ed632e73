"""From the two graded scripts to a hand-in. This floor imports the scripts; they know nothing of it."""
