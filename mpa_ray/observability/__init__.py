"""What users and operators see: progress, log records and usage."""
