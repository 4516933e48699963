"""Places that store files: local disk, S3, Google Cloud Storage and the web. Each is a class with the same protocol."""
