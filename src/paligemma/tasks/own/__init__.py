"""A user's own pictures with prompts and answers."""
