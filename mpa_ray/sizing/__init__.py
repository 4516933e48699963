"""What a run will take, estimated before anything is started."""
