"""The arithmetic of quantize-dequantize, and the search for clipped scales."""
