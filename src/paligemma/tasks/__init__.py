"""What one benchmark example is: prompt, target, extraction and score.

Training and evaluation share it.
"""
