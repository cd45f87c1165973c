"""Detection and referring segmentation."""
