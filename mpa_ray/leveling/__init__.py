"""The Parity Leveler: fine-tune a student on its parity samples. The only package that knows Ray Train."""
