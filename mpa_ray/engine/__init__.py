"""What answers a question about an image: a small protocol and the engines behind it."""
