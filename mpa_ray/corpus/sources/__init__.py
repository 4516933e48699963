"""What a corpus can be made of: one class for each kind of source, behind one protocol."""
