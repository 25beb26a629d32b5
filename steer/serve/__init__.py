"""An OpenAI-compatible server whose requests say how they are steered."""
