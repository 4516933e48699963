"""What a checkpoint is: its content, its components, its chat template, and which models can share an engine."""
