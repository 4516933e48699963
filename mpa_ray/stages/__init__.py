"""The work of each pass on one image: classes that call a model, and pure functions. This package does not use Ray."""
