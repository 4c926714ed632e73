"""What the upper floors, handin/ and studies/, share: they never import each other."""
