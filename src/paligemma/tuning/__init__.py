"""Teaching a model a user's task: data, recipe, training, measuring, and what is kept."""
