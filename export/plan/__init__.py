"""The plan: every number of the quantized model, its JSON, and the arithmetic it stands for."""
