"""Many students in one job."""
