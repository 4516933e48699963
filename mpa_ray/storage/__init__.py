"""Where the files of a run are stored: a local folder or an object store."""
