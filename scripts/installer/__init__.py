"""What scripts/install.py does, with the standard library alone."""
