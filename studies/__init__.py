"""Four related experiments: python -m studies STUDY DATA... --out FOLDER"""
