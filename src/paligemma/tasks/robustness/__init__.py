"""What a model trained on VQAv2 is asked without further training."""
