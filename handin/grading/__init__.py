"""The course's autograder: one script or a class."""
