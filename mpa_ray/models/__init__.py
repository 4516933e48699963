"""What a checkpoint is: its content, its components, its prompts, and which engines can share it."""
