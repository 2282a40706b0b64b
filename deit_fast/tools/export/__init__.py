"""A trained model written for timm, Hugging Face or ONNX, and checked there, with a model card."""
