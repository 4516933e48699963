"""The work of each pass on one image, in classes around a model and in pure functions. None of them uses Ray."""
