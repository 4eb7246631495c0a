"""What conversations and texts are made of: templates, prompts, thoughts, tokens."""
