"""Tasks: the prompts of teacher and students, and how replies are parsed."""
