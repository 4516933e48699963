"""Where files lie: this machine, S3, Google Cloud Storage, the web. One class each, behind one protocol."""
