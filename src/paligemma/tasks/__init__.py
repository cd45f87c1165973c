"""What one benchmark example is: prompt, target, extraction and score; shared by training and evaluation."""
