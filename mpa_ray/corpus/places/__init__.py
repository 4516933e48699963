"""Where files are stored: local disk, S3, Google Cloud Storage, the web. One class each, behind one protocol."""
