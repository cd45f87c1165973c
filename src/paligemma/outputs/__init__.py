"""What a model's output tokens mean: text, boxes, masks and confidences."""
