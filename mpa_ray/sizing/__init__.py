"""What a run will take, reckoned before anything is started."""
