"""PaliGemma and PaliGemma 2 in PyTorch."""
