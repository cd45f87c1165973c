"""Models for other programs: ONNX, a compiled package, a folder of the hub."""
