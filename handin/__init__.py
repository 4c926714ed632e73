"""The tools around the two graded scripts: grading, the report, the zip."""
