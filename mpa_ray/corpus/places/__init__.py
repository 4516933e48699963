"""Places that store files: local disk, S3, Google Cloud Storage and the web. Each place is a class that implements the
protocol `Place`."""
