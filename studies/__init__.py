"""The other experiments of the course family: python -m studies STUDY DATA... --out FOLDER"""
