"""Statistics of activations: streamed, merged, cached."""
