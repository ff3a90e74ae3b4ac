"""The best student of a search as files: weights, model card, ONNX or torch.export graph."""
