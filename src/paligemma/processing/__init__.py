"""From pictures and text to the batch the model reads: tokenizer, images, prompts, token layout."""
