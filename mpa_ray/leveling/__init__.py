"""The Parity Leveler: fine-tune a student on its parity samples. Only this package uses Ray Train."""
