"""Other ways than transformers to run the same interventions."""
