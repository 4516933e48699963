"""Sources of images: one class for each kind, behind one protocol."""
