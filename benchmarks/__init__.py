"""What is measured, by commands anyone can run. Not part of the hand-in."""
