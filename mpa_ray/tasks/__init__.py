"""A task: what the teacher is asked to write, how its reply is read, and how a question is put to a model."""
