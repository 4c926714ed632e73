"""The commands behind the published figures. Not part of the hand-in."""
