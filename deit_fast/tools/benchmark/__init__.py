"""How fast, large and right a model is, in PyTorch and in ONNX, each form in a process of its own, in turn."""
