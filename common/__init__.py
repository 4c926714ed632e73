"""What handin/ and studies/ share: they never import each other."""
import os

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # as in the scripts: torch reads it when it is first imported
