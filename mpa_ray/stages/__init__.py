"""What each pass does with one image: plain classes around a model and pure functions, without Ray."""
